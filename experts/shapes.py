"""Expert `shapes`: round and straight-edged objects, for nouns that name such a shape."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from pydantic import Field

from experts.base import Candidate, Expert, ExpertOptions, Request
from experts.lexicon import Words, colour_share, read_phrase, to_lab, word_fit
from experts.refine import enlarge, shrink

_ROUND = {
    "ball": 0.8, "orange": 0.8, "apple": 0.75, "tomato": 0.75, "balloon": 0.7, "coin": 0.5, "button": 0.5,
    "clock": 0.5, "wheel": 0.4, "tire": 0.4, "plate": 0.25, "saucer": 0.25, "dish": 0.25, "pizza": 0.25, "bowl": 0.25,
    "pan": 0.3, "lid": 0.25, "ring": 0.25, "circle": 0.8, "frisbee": 0.2,
}  # fmt: skip
"""Nouns of round things with the least ratio of the axes at which one is usually seen."""
_STRAIGHT = {
    "box", "book", "sign", "screen", "window", "door", "card", "laptop", "tv", "television", "monitor", "phone",
    "picture", "painting", "poster", "block", "brick", "cube", "tile", "paper", "envelope", "drawer", "cabinet",
    "rectangle", "square", "tray", "board", "fridge", "refrigerator", "carton",
}  # fmt: skip

_SIDE = 320
"""Long side in pixels at which outlines are fitted: they need more than areas do."""
_LEVELS = range(16, 256, 12)
"""Grey levels of each CIELAB channel whose level sets are looked at."""
_SMALLEST, _LARGEST = 0.002, 0.5
"""Shares of the image between which an outline may be an object's."""
_LEAST = 0.1
"""Score under which a shape is no candidate."""
_FIT = 0.92
"""Least overlap of an outline with the ellipse or polygon fitted to it."""


class ShapesOptions(ExpertOptions):
    """Options of the expert `shapes`."""

    candidates: int = Field(3, ge=1, le=10)
    """Most candidates per phrase."""


class Shapes(Expert):
    """Outlines of level sets in each CIELAB channel that an ellipse or a convex polygon of four to six corners fits.
    An outline that many levels agree on is a strong edge. Colour, size and position words break ties."""

    summary = "ellipses and polygons for nouns of round or straight-edged things: level-set outlines in CIELAB"
    limits = "simple, unoccluded outlines of even contrast; cannot tell a plate from a clock"
    Options = ShapesOptions
    options: ShapesOptions

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return f"shapes-3+opencv-{cv2.__version__}"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        read = [[(phrase, read_phrase(phrase)) for phrase in request.phrases] for request in requests]
        small = shrink(image, _SIDE)
        if small is None or not any(_noun(words) for phrases in read for _, words in phrases):
            return [[] for _ in requests]
        smooth = cv2.GaussianBlur(small, (0, 0), 1.0)
        shapes = _shapes(to_lab(smooth))
        found = []
        for phrases in read:
            candidates = [
                Candidate(enlarge(shape.mask, *image.shape[:2]), score, phrase)
                for phrase, words in phrases
                for shape, score in _ranked(shapes, words, smooth, self.options.candidates)
            ]
            found.append(sorted(candidates, key=lambda candidate: -candidate.score))
        return found


@dataclass(frozen=True, eq=False)
class _Outline:
    """A shape fitted to an outline: its `points` int32 (n, 2) x, y at working size; `roundness` the ratio of an
    ellipse's axes, 0 for a polygon; `fit` their overlap in [0, 1]."""

    points: np.ndarray
    roundness: float
    fit: float

    @cached_property
    def area(self) -> float:
        return cv2.contourArea(self.points)

    @cached_property
    def centre(self) -> tuple[float, float]:
        x, y = self.points.mean(0)
        return float(x), float(y)

    def same_as(self, other: "_Outline") -> bool:
        apart = max(abs(self.centre[0] - other.centre[0]), abs(self.centre[1] - other.centre[1]))
        alike = 0.8 < self.area / other.area < 1.25 and (self.roundness > 0) == (other.roundness > 0)
        return alike and apart < 0.1 * self.area**0.5


@dataclass(frozen=True, eq=False)
class _Shape:
    """A distinct shape: `mask` bool at working size; `quality` in [0, 1] of its fit, contrast and size."""

    mask: np.ndarray
    centre: tuple[float, float]
    roundness: float
    quality: float


def _noun(words: Words) -> str | None:
    """The last noun of the head that names a shape, in the singular."""
    nouns = [word if word in _ROUND or word in _STRAIGHT else word.removesuffix("s") for word in words.head]
    nouns = ["box" if noun == "boxe" else noun for noun in nouns]
    return next((noun for noun in reversed(nouns) if noun in _ROUND or noun in _STRAIGHT), None)


def _shapes(lab: np.ndarray) -> list[_Shape]:
    grey = np.clip((lab + np.array([0, 64, 64])) * (2.55, 2, 2), 0, 255).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    # A median flattens texture and print, an opening cuts what only a thin bridge joins to an object.
    flat = cv2.medianBlur(grey, 5)
    opened, closed = (cv2.morphologyEx(flat, way, disc) for way in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE))
    outlines = []
    for channel, level in itertools.product(itertools.chain(*map(cv2.split, (flat, opened, closed))), _LEVELS):
        levelset = (channel > level).astype(np.uint8)
        for contour in cv2.findContours(levelset, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]:
            if _SMALLEST <= cv2.contourArea(contour) / levelset.size <= _LARGEST:
                outlines.extend(_fitted(contour, levelset.shape))
    groups: list[list[_Outline]] = []
    for outline in outlines:
        group = next((group for group in groups if outline.same_as(group[0])), None)
        if group is None:
            groups.append([outline])
        else:
            group.append(outline)
    return [_measured(max(group, key=lambda outline: outline.fit), len(group), lab) for group in groups]


def _fitted(contour: np.ndarray, shape: tuple[int, ...]) -> list[_Outline]:
    """The ellipse or polygon that fits a closed contour, if either does."""
    hull = cv2.convexHull(contour)
    area = cv2.contourArea(hull)
    if cv2.contourArea(contour) < 0.9 * area or _at_border(contour, shape):
        return []
    corners = cv2.approxPolyDP(hull, 0.03 * cv2.arcLength(hull, True), True)
    straight = cv2.contourArea(corners) / area if 4 <= len(corners) <= 6 else 0.0
    centre, axes, angle = cv2.fitEllipseDirect(contour)
    if not (np.isfinite([*centre, *axes, angle]).all() and min(axes) > 0 and max(axes) < max(shape)):
        return []
    halves = (round(axes[0] / 2), round(axes[1] / 2))
    ellipse = np.array(
        cv2.ellipse2Poly((round(centre[0]), round(centre[1])), halves, round(angle), 0, 360, 6), np.int32
    )
    curved = _overlap(ellipse, hull[:, 0])
    if max(curved, straight) < _FIT:
        return []
    if curved >= straight:
        return [_Outline(ellipse, min(axes) / max(axes), curved)]
    return [_Outline(corners[:, 0], 0.0, straight)]


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two filled polygons, int32 (n, 2)."""
    corner = np.minimum(first.min(0), second.min(0))
    width, height = np.maximum(first.max(0), second.max(0)) - corner + 1
    canvas = np.zeros((2, height, width), np.uint8)
    cv2.fillPoly(canvas[0], [first - corner], 1)
    cv2.fillPoly(canvas[1], [second - corner], 1)
    shared = cv2.countNonZero(canvas[0] & canvas[1])
    return shared / (cv2.countNonZero(canvas[0]) + cv2.countNonZero(canvas[1]) - shared)


def _at_border(contour: np.ndarray, shape: tuple[int, ...]) -> bool:
    left, top, width, height = cv2.boundingRect(contour)
    return left == 0 or top == 0 or left + width == shape[1] or top + height == shape[0]


def _measured(outline: _Outline, support: int, lab: np.ndarray) -> _Shape:
    height, width = lab.shape[:2]
    filled = np.zeros((height, width), np.uint8)
    cv2.fillPoly(filled, [outline.points], 1)
    mask = filled > 0
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    inside, around = mask & (cv2.erode(filled, disc) == 0), (cv2.dilate(filled, disc) > 0) & ~mask
    contrast = np.linalg.norm(lab[inside].mean(0) - lab[around].mean(0)) if around.any() else 0.0
    quality = (1 - np.exp(-contrast / 12)) * (1 - np.exp(-support / 3)) * min(1.0, mask.mean() / 0.02) ** 0.5
    centre = (float(outline.centre[0]) / width, float(outline.centre[1]) / height)
    return _Shape(mask, centre, outline.roundness, float(quality * (outline.fit - 0.8) / 0.2))


def _ranked(shapes: list[_Shape], words: Words, rgb: np.ndarray, most: int) -> list[tuple[_Shape, float]]:
    """The best shapes of the kind that the head's noun names, with their scores."""
    noun = _noun(words)
    if noun is None:
        return []
    roundest = _ROUND.get(noun)
    fitting = [shape for shape in shapes if (shape.roundness == 0 if roundest is None else shape.roundness >= roundest)]
    fit = word_fit(words, [float(shape.mask.sum()) for shape in fitting], [shape.centre for shape in fitting])
    if words.colours:
        share = colour_share(rgb, words.colours)
        fit = fit * [0.2 + 0.8 * float(share[shape.mask].mean()) for shape in fitting]
    scored = [(shape, shape.quality * float(fits)) for shape, fits in zip(fitting, fit, strict=True)]
    return sorted((pair for pair in scored if pair[1] >= _LEAST), key=lambda pair: -pair[1])[:most]
