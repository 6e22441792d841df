"""How a mask answers an instruction next to the image's other masks: the one meant is the one that fits best."""

from dataclasses import dataclass

import numpy as np

from experts.lexicon import Words, noun
from stages.appearance import COLOURS
from stages.measures import STATISTICS, colours_of
from stages.naming import UNKNOWN, Namer

RIVALS = 24
"""Length of what `compare` gives of each mask."""
_SAME = 0.4
"""IoU of boxes from which on two masks may show the same thing, and are no rivals."""
_WHOLE = 0.8
"""IoU of boxes from which on two masks are as good as one."""
_PLACE, _SIZE, _RELATION, _EXTREME = 5.0, 1.5, 1.0, 2.0
"""Weights of place (per side of the image), log area, and the logs of relation and extreme, against log probability."""
_DOUBT = 0.03
"""Share of the image by which a thing must lie left of another to be so for certain."""
_LARGER = 0.1
"""Difference of log areas from which on a thing is larger than another for certain."""
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
    phrase, which is mostly what a command is about. And the IoU that its box should have with the box of what is
    meant, and its share within that, by the odds of all masks: a part of what is meant fits no noun by itself.

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
    iou, within = _box_overlaps(boxes, boxes[n:])
    other, whole = iou < _SAME, iou[:n] >= _WHOLE
    named, plain, full, related = (np.zeros((count, len(boxes))) for _ in range(4))
    for k, words in enumerate(phrases):
        named[k], plain[k] = _unary(words, everything, namer)
        related[k] = _related(words, everything, n, other, namer)
        extreme = _extreme(words, everything.figures, np.exp(plain[k, n:].clip(max=0)) * other)
        full[k] = plain[k] + _placed(words, everything.figures)
        full[k] += _RELATION * np.log(related[k] + 0.05) + _EXTREME * np.log(extreme)
    lead, beaten = _contest(plain, other[:n], n)
    full_lead, full_beaten = _contest(full, other[:n], n)
    hoped = [_hoped(full, iou[:n], whole), _hoped(plain, iou[:n], whole), _hoped(full, within[:n], whole)]
    full = full[:, :n].clip(_LEAST, -_LEAST)
    columns = (named[:, :n], plain[:, :n], lead, beaten, full, full_lead, full_beaten, related[:, :n])
    best, each = full_lead.argmax(axis=0), np.arange(n)
    known = np.array([namer.of(noun(words), everything.names) is not None for words in phrases], dtype=float)
    first = (column[0] for column in (named[:, :n], plain[:, :n], lead, full_lead, full_beaten, related[:, :n]))
    top = np.exp(masks.names.max(axis=1)) if namer.nouns else np.zeros(n)
    parts = [*(share for one in hoped for share in (one.max(axis=0), one[0])), hoped[0].mean(axis=0)]
    rows = [*(column[best, each] for column in columns), known[best], *first, np.full(n, float(count)), top, *parts]
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


def _placed(words: Words, figures: np.ndarray) -> np.ndarray:
    """How well place and size fit: (n,). Things stand at the bottom of their box."""
    fit = _SIZE * words.size * figures[:, STATISTICS[0]]
    for side, wanted in zip(_standing(figures[:, :4]), words.target, strict=True):
        fit = fit if wanted is None else fit - _PLACE * np.abs(side - wanted)
    return fit


def _extreme(words: Words, figures: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """How sure it is that no rival lies further where the phrase says, or is larger or smaller: (n,) in [0.05, 1].

    "The leftmost cup" is left of other cups, wherever in the image they are: a rival counts as likely as it is one.

    Args:
        words: the phrase.
        figures: of all masks, (n, f), the rivals last.
        odds: that a rival is what the phrase names and another thing than the mask: (n, r) in [0, 1].
    """
    n, sure = len(figures) - odds.shape[1], np.ones(len(figures))
    for side, wanted in zip(_standing(figures[:, :4]), words.target, strict=True):
        if wanted in (0, 1):
            nearer = side if wanted else -side
            sure = np.minimum(sure, _unbeaten((nearer[None, n:] - nearer[:, None]) / _DOUBT, odds))
    if words.size:
        size = words.size * figures[:, STATISTICS[0]]
        sure = np.minimum(sure, _unbeaten((size[None, n:] - size[:, None]) / _LARGER, odds))
    return sure


def _unbeaten(by: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """1 less the odds of the rival that most surely leads, `by` (n, r) times what is certain: (n,) in [0.05, 1]."""
    return 1.05 - (odds * _surely(by)).max(axis=1, initial=0.05)


def _standing(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x of the middle and y of the bottom of boxes, as shares of the image."""
    return (boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]


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
        return _surely((right if kind == "right" else -right) / _DOUBT) * np.exp(-np.abs(nearer) / (3 * _REACH))
    if kind in ("above", "below"):
        return _surely((nearer if kind == "below" else -nearer) / _DOUBT) * np.exp(-across / _REACH)
    if kind == "near":
        return np.exp(-np.hypot(across, down) / _REACH)
    width = a[..., 2] - a[..., 0]
    over = (np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])).clip(0) / (width + 1e-9)
    higher = a[..., 1] + a[..., 3] < b[..., 1] + b[..., 3] + 2 * _DOUBT
    return over * _surely(-nearer / _DOUBT) * np.exp(-np.hypot(across, down) / _DOUBT) * higher


def _surely(difference: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-difference.clip(-30, 30)))


def _contest(fit: np.ndarray, other: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """By how much each of the first n masks beats its best rival, and fifths of the number that beat it: (p, n)."""
    against = np.where(other[None], fit[:, None, n:], -np.inf)
    best = against.max(axis=2, initial=_LEAST)
    return (fit[:, :n] - best).clip(-_MOST, _MOST), (against > fit[:, :n, None]).sum(axis=2) / 5


def _hoped(fit: np.ndarray, overlap: np.ndarray, same: np.ndarray) -> np.ndarray:
    """What the first n masks should share with what is meant, by the odds of the fits (p, n + r): (p, n) in [0, 1].

    A mask may itself be meant, and so may what no expert found. Rivals that are the `same`, bool (n, r), only add to
    its odds, the best one of them: if they counted as others, an expert's mask, which is its own rival, could be told
    from a human one.
    """
    n = len(overlap)
    own = np.maximum(fit[:, :n], np.where(same, fit[:, None, n:], -np.inf).max(axis=2, initial=-np.inf))
    odds = np.exp((fit[:, None, n:] - own[:, :, None]).clip(-30, 30)) * ~same
    unseen = np.exp((UNKNOWN - own).clip(-30, 30))
    return (1 + (odds * overlap).sum(axis=2)) / (1 + odds.sum(axis=2) + unseen)


def _box_overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU of boxes a (n, 4) with boxes b (r, 4), and the share of each a within each b: both (n, r)."""
    first, second = a[:, None], b[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared + 1e-9), shared / (areas[0] + 1e-9)
