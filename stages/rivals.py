"""How a mask answers an instruction next to the image's other masks: the one meant is the one that fits best."""

from dataclasses import dataclass

import numpy as np

from experts.lexicon import Words, noun
from stages.appearance import COLOURS
from stages.measures import STATISTICS, colours_of
from stages.naming import UNKNOWN, Namer

RIVALS = 17
"""Length of what `compare` gives of each mask."""
_SAME = 0.4
"""IoU of boxes from which on two masks may show the same thing, and are no rivals."""
_PLACE, _SIZE, _RELATION = 5.0, 1.5, 1.0
"""Weights of place (per side of the image), log area, and log fit of the relation, against the log probability."""
_DOUBT = 0.03
"""Share of the image by which a thing must lie left of another to be so for certain."""
_REACH = 0.1
"""Share of the image's sides within which things are near each other."""
_LEAST, _MOST = -9.0, 6.0


@dataclass(frozen=True, eq=False)
class Seen:
    """Masks of one image: `figures` float32 (n, f) and `names`, what a `Namer` said of them, float32 (n, v)."""

    figures: np.ndarray
    names: np.ndarray


def compare(masks: Seen, rivals: Seen, phrases: tuple[Words, ...], namer: Namer) -> np.ndarray:
    """Figures of each mask's fit with the phrases of one instruction: float32 (n, RIVALS).

    For the phrase by which it stands out most: the noun's log probability; with colour; by how much it beats the best
    rival, and how many rivals beat it; these two again with place, size and relation. Most of them again for the first
    phrase, which is mostly what a command is about.

    Args:
        masks: the masks to be told about.
        rivals: experts' masks on the same image, for whatever instruction; there may be none.
        phrases: `Wording.asked` of the instruction, at least one.
        namer: the one that named both.
    """
    n, count = len(masks.figures), len(phrases)
    everything = Seen(
        np.concatenate([masks.figures, rivals.figures]), np.concatenate([masks.names, rivals.names], dtype=np.float32)
    )
    boxes = everything.figures[:, :4]
    other = _box_iou(boxes, boxes[n:]) < _SAME
    named, plain, full, related = (np.zeros((count, len(boxes))) for _ in range(4))
    for k, words in enumerate(phrases):
        named[k], plain[k] = _unary(words, everything, namer)
        related[k] = _related(words, everything, n, other, namer)
        full[k] = plain[k] + _placed(words, everything.figures, boxes) + _RELATION * np.log(related[k] + 0.05)
    lead, beaten = _contest(plain, other[:n], n)
    full_lead, full_beaten = _contest(full, other[:n], n)
    full = full[:, :n].clip(_LEAST, -_LEAST)
    columns = (named[:, :n], plain[:, :n], lead, beaten, full, full_lead, full_beaten, related[:, :n])
    best, each = full_lead.argmax(axis=0), np.arange(n)
    known = np.array([namer.of(noun(words), everything.names) is not None for words in phrases], dtype=float)
    first = (column[0] for column in (named[:, :n], plain[:, :n], lead, full_lead, full_beaten, related[:, :n]))
    top = np.exp(masks.names.max(axis=1)) if namer.nouns else np.zeros(n)
    rows = [*(column[best, each] for column in columns), known[best], *first, np.full(n, float(count)), top]
    return np.stack(rows, axis=1).astype(np.float32)


def _unary(words: Words, seen: Seen, namer: Namer) -> tuple[np.ndarray, np.ndarray]:
    """Log probability of the noun, and with the log share of the colour added, both (n,)."""
    known = namer.of(noun(words), seen.names)
    named = np.full(len(seen.figures), UNKNOWN) if known is None else known
    if not words.colours:
        return named, named
    columns = [COLOURS.index(name) for name in words.colours]
    share = np.array([colours_of(figures)[0, columns].sum() for figures in seen.figures])
    return named, named + np.log(share + 0.1)


def _placed(words: Words, figures: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How well place and size fit, relative to other masks: (n,). Things stand at the bottom of their box."""
    at = ((boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3])
    fit = _SIZE * words.size * figures[:, STATISTICS[0]]
    for side, wanted in zip(at, words.target, strict=True):
        fit = fit if wanted is None else fit - _PLACE * np.abs(side - wanted)
    return fit


def _related(words: Words, seen: Seen, n: int, other: np.ndarray, namer: Namer) -> np.ndarray:
    """How well each mask lies as the relation says, (n + r,) in [0, 1]; one half where nothing is said.

    What it relates to is each rival in proportion to how well it fits, the mask itself never.
    """
    if words.relation is None or not other.shape[1]:
        return np.full(len(seen.figures), 0.5)
    kind, reference = words.relation
    _, fit = _unary(reference, Seen(seen.figures[n:], seen.names[n:]), namer)
    weights = np.exp(fit - fit.max())
    boxes = seen.figures[:, :4]
    return (_direction(kind, boxes[:, None], boxes[None, n:]) * other) @ (weights / weights.sum())


def _direction(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far boxes a (n, 1, 4) lie left, right, above, below, near or on boxes b (1, r, 4): (n, r) in [0, 1]."""
    right = (a[..., 0] + a[..., 2] - b[..., 0] - b[..., 2]) / 2
    nearer = a[..., 3] - b[..., 3]
    across = np.maximum(np.maximum(a[..., 0] - b[..., 2], b[..., 0] - a[..., 2]), 0)
    down = np.maximum(np.maximum(a[..., 1] - b[..., 3], b[..., 1] - a[..., 3]), 0)
    if kind in ("left", "right"):
        return _surely(right if kind == "right" else -right) * np.exp(-np.abs(nearer) / (3 * _REACH))
    if kind in ("above", "below"):
        return _surely(nearer if kind == "below" else -nearer) * np.exp(-across / _REACH)
    if kind == "near":
        return np.exp(-np.hypot(across, down) / _REACH)
    width = a[..., 2] - a[..., 0]
    over = (np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])).clip(0) / (width + 1e-9)
    higher = a[..., 1] + a[..., 3] < b[..., 1] + b[..., 3] + 2 * _DOUBT
    return over * _surely(-nearer) * np.exp(-np.hypot(across, down) / _DOUBT) * higher


def _surely(difference: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(difference / _DOUBT).clip(-30, 30)))


def _contest(fit: np.ndarray, other: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """By how much each of the first n masks beats its best rival, and fifths of the number that beat it: (p, n)."""
    against = np.where(other[None], fit[:, None, n:], -np.inf)
    best = against.max(axis=2, initial=_LEAST)
    return (fit[:, :n] - best).clip(-_MOST, _MOST), (against > fit[:, :n, None]).sum(axis=2) / 5


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    first, second = a[:, None], b[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared + 1e-9)
