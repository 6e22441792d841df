"""Words that pixels can answer: colours, sizes and positions, and how well pixels or regions fit them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

PROTOTYPES: dict[str, str] = {
    "red": "e02020 b81c20 d84848 7c1618 ff3838 981820",
    "orange": "f08020 e06818 f8a048 d08030 ff9810",
    "yellow": "f4d820 e8c830 f8e878 c8a818 ffe848 dca420 a88818",
    "green": "30a030 186818 78c060 607830 a0d878 2e8b57 284828 90a850",
    "cyan": "20c0c8 108888 80d8d8 40a0a0 206868",
    "blue": "2050c0 103080 5090e0 90b8e8 182858 3878b0 6088b0",
    "purple": "8030a0 502070 b080d0 703878 604880",
    "pink": "f090b0 e85898 f8c8d0 d87890 ff78c0",
    "brown": "804818 583018 a06838 6a4a34 402818 985830",
    "beige": "e0c8a0 d2b48c f0e0c8 c0a888",
    "black": "080808 202020 181c24 2c2420",
    "grey": "484848 686868 888888 a8a8a8 c4c4c4 788088 888078",
    "white": "ffffff ececec f4f0e4 e8ecf4 dcdcdc e0d8cc",
}
"""sRGB hex prototypes of the colours that are told apart, light and shaded."""

_ALIASES = {
    "gray": "grey", "silver": "grey", "turquoise": "cyan", "teal": "cyan", "aqua": "cyan", "golden": "yellow",
    "gold": "yellow", "violet": "purple", "magenta": "pink", "navy": "blue", "tan": "beige", "cream": "beige",
    "crimson": "red", "maroon": "red", "scarlet": "red", "lime": "green", "olive": "green",
}  # fmt: skip

_USUAL = {
    "banana": "yellow", "lemon": "yellow", "corn": "yellow", "apple": "red green", "tomato": "red",
    "strawberry": "red", "cherry": "red", "carrot": "orange", "pumpkin": "orange", "pear": "green yellow",
    "lime": "green", "broccoli": "green", "lettuce": "green", "cucumber": "green", "grass": "green", "lawn": "green",
    "tree": "green", "plant": "green", "leaf": "green", "bush": "green", "sky": "blue", "sea": "blue",
    "ocean": "blue", "snow": "white", "cloud": "white", "swan": "white", "sheep": "white", "tire": "black",
    "tyre": "black", "chocolate": "brown", "bread": "brown",
    "wooden": "brown", "wood": "brown", "flame": "orange yellow", "fire": "orange yellow",
}  # fmt: skip
"""Memory colours: what things, singular, usually have where a phrase does not say."""

_SMALL = {"small", "smaller", "smallest", "little", "tiny", "tiniest", "mini"}
_LARGE = {"large", "larger", "largest", "big", "bigger", "biggest", "huge", "giant", "tall", "tallest"}

_POSITIONS = {
    "left": (0.0, None), "leftmost": (0.0, None), "right": (1.0, None), "rightmost": (1.0, None),
    "top": (None, 0.0), "topmost": (None, 0.0), "upper": (None, 0.0), "background": (None, 0.0),
    "back": (None, 0.0), "farthest": (None, 0.0), "bottom": (None, 1.0), "lower": (None, 1.0),
    "lowest": (None, 1.0), "foreground": (None, 1.0), "front": (None, 1.0), "nearest": (None, 1.0),
    "closest": (None, 1.0), "middle": (0.5, None), "center": (0.5, None), "centre": (0.5, None),
    "central": (0.5, None),
}  # fmt: skip
"""Where a position word points: x and y as shares of width and height; None where it does not say."""

_NOISE = re.compile(
    r"\bof (?:the|this) (?:image|picture|photo|photograph|scene|frame|table|view|room)\b|\bhand\b|\bside\b|"
    r"\b(?:written|printed|text|words?|writing|label|title|name|logo) (?:on|of)\b|"
    r"\blabell?ed (?:\"[^\"]*\"|\w+)|\b(?:pieces?|bunch|bunches|pairs?|kinds?|types?|sorts?|groups?) of\b"
)
_CAMERA = re.compile(
    r"\b(?:(nearest|closest|nearer|closer)|furthest|farthest|further|farther)"
    r"(?: away)? (?:to|from) (?:the )?(?:camera|viewer|me|us|you)\b"
)
_PLACE = re.compile(
    r"\b(?:on|in|at|to|towards?) (?:the )?(?:(?:far|very|extreme) )?"
    rf"({'|'.join(_POSITIONS)})(?:[ -]?({'|'.join(_POSITIONS)}))?(?: corner)?\b(?! of\b)"
)
_RELATION = re.compile(
    r"\b(?:(?P<left>(?:to|on|at) the left of|left of)|(?P<right>(?:to|on|at) the right of|right of)|"
    r"(?:right )?(?:(?P<above>above|over|behind|beyond|at the back of)|"
    r"(?P<below>below|under|underneath|beneath|in front of)|"
    r"(?P<near>next to|beside|nearest(?: to)?|near|closest to|close to|by|around|against|alongside))|"
    r"(?P<on>on top of|on|onto|in|inside|into|within|from|off)|"
    r"(?P<cut>at|with|without|between|among|that|which|who|whose|of|for|and|holding|wearing|carrying|along|across))\b"
)
_WORD = re.compile(r"[a-z]+")

DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1), "on": (0, 0), "near": (0, 0),
}  # fmt: skip
"""Where a thing lies from the one it is related to, x to the right and y down; nearer the camera is lower."""


@dataclass(frozen=True)
class Words:
    """What is understood of a phrase. All but `relation` is about its head ("red cup | next to the plate").

    `colours` are named or, if `assumed`, those the noun usually has; `size` is -1 for small, 1 for large, 0 where
    the phrase does not say; `target` is the point (x, y) that its position words name, as shares of width and
    height, None where it does not say; `relation` is a key of `DIRECTIONS` and what it relates to.
    """

    head: tuple[str, ...]
    colours: tuple[str, ...]
    assumed: bool
    size: int
    target: tuple[float | None, float | None]
    relation: tuple[str, "Words"] | None

    @property
    def placed(self) -> bool:
        """True if there is a position word."""
        return self.target != (None, None)


def read_phrase(phrase: str) -> Words:
    """Colour, size, position and relation words of a phrase; position words count wherever they stand."""
    text = _NOISE.sub(" ", phrase.lower())
    text = _CAMERA.sub(lambda match: " at the foreground " if match[1] else " at the background ", text)
    places = [word for match in _PLACE.finditer(text) for word in match.groups() if word]
    text = _PLACE.sub(" ", text)
    cut = _RELATION.search(text)
    head = tuple(_WORD.findall(text[: cut.start()] if cut else text))
    x: float | None = None
    y: float | None = None
    for word in [*places, *head]:
        across, down = _POSITIONS.get(word, (None, None))
        x, y = (across if x is None else x), (down if y is None else y)
    named = [_ALIASES.get(word, word) for word in head if _ALIASES.get(word, word) in PROTOTYPES]
    usual = [name for word in head for name in _USUAL.get(word.removesuffix("s"), "").split()]
    related = cut is not None and cut.lastgroup in DIRECTIONS
    return Words(
        head=head,
        colours=tuple(dict.fromkeys(named or usual)),
        assumed=bool(usual) and not named,
        size=int(any(word in _LARGE for word in head)) - int(any(word in _SMALL for word in head)),
        target=(x, y),
        relation=(str(cut.lastgroup), read_phrase(text[cut.end() :])) if cut and related else None,
    )


_PLURALS = {
    "knives": "knife", "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "halves": "half", "scarves": "scarf",
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "feet": "foot",
    "teeth": "tooth", "geese": "goose",
}  # fmt: skip


def singular(word: str) -> str:
    """The singular of an English noun in lower case; what looks like none is given back as it is."""
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses", "toes")):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word.removesuffix("s")


_GENERIC = {"object", "thing", "something", "anything", "item", "one", "stuff"}
_NO_NOUN = {
    *PROTOTYPES, *_ALIASES, *_SMALL, *_LARGE, *_POSITIONS,
    "the", "a", "an", "this", "that", "further", "furthest", "closer",
}  # fmt: skip


def noun(words: Words) -> str:
    """The last word of the head that tells more than colour, size or place, in the singular: mostly a noun.

    "" if there is none, or one that any object goes by.
    """
    # An orange, not something orange, where no noun follows.
    if words.head and singular(words.head[-1]) in PROTOTYPES:
        return singular(words.head[-1])
    name = next((singular(word) for word in reversed(words.head) if word not in _NO_NOUN), "")
    return "" if name in _GENERIC else name


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """uint8 RGB (height, width, 3) as CIELAB float32: L in [0, 100], a and b about [-110, 110]."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _prototypes() -> tuple[np.ndarray, np.ndarray]:
    colours = [(name, code) for name, codes in PROTOTYPES.items() for code in codes.split()]
    rgb = np.array([list(bytes.fromhex(code)) for _, code in colours], dtype=np.uint8)
    owners = np.array([list(PROTOTYPES).index(name) for name, _ in colours])
    return to_lab(rgb[None])[0], owners


_SPREAD = 11.0
"""CIELAB distance by which a colour still counts as its prototype's."""


def colour_share(rgb: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """How far each pixel of uint8 RGB (height, width, 3) is one of the colours and no other: float32 (height, width)
    in [0, 1].

    A soft nearest prototype: Gaussian kernels about `PROTOTYPES` in CIELAB, normalised over the colours. Looked up to
    a precision of 8 grey levels, well under the kernels' width.
    """
    named = [list(PROTOTYPES).index(colour) for colour in colours]
    return _look_up(np.minimum(_share_table()[..., named].sum(-1), 1), rgb)


def colour_shares(rgb: np.ndarray) -> np.ndarray:
    """The same of each colour of `PROTOTYPES` alone: float32 (height, width, colours); they sum to 1."""
    return _look_up(_share_table(), rgb)


def _look_up(table: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(rgb >> 3, -1, 0)
    return table[red, green, blue]


@cache
def _share_table() -> np.ndarray:
    """Shares of all colours, float32 (32, 32, 32, colours), by the upper five bits of R, G and B."""
    points, owners = _prototypes()
    levels = np.arange(4, 256, 8, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    lab = to_lab(rgb.reshape(1, -1, 3))[0]
    squared = (lab**2).sum(1)[:, None] - 2 * lab @ points.T + (points**2).sum(1)
    nearest = np.stack([squared[:, owners == k].min(1) for k in range(len(PROTOTYPES))], axis=-1)
    weights = np.exp((nearest.min(1, keepdims=True) - nearest) / (2 * _SPREAD**2))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32).reshape(*rgb.shape[:3], -1)


def word_fit(words: Words, areas: Sequence[float], centres: Sequence[tuple[float, float]]) -> np.ndarray:
    """How well each of some regions fits the size and position words: float (regions,) in [0.2, 1].

    `areas` in any unit, `centres` (x, y) as shares of width and height. Sizes are relative to the other regions,
    so is a position: "left" is left of the others.
    """
    fit = np.ones(len(areas))
    if len(areas) < 2:
        return fit
    if words.size:
        fit *= _graded(words.size * np.log(np.asarray(areas)))
    for axis, wanted in enumerate(words.target):
        if wanted is not None:
            fit *= _graded(-np.abs(np.array([centre[axis] for centre in centres]) - wanted))
    return np.maximum(fit, 0.2)


def _graded(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return 0.2 + 0.8 * (values - values.min()) / spread if spread > 0 else np.ones_like(values)
