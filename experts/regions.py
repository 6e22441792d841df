"""Expert `regions`: parts of the image that have the colour, size or position that a phrase names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import cv2
import numpy as np
from pydantic import Field

from experts.base import Candidate, Expert, ExpertOptions, Request
from experts.lexicon import DIRECTIONS, Words, colour_share, read_phrase, to_lab, word_fit
from experts.refine import enlarge, refine, shrink, tidy
from pipeline.masks import mask_iou

_SMALLEST, _LARGEST = 0.0015, 0.6
"""Shares of the image outside which a region is taken for noise or for the scene itself."""
_LEVELS = (0.6, 0.35, 0.15)
_AROUND = 3
"""Width in working pixels of the surroundings that a region is told from."""
_LEAST = 0.05
"""Quality or score under which a region is no candidate."""
_ASSUMED, _UNCOLOURED = 0.7, 0.5
"""Trust where the phrase does not name the colour that its noun usually has, and where there is none to go by."""


class RegionsOptions(ExpertOptions):
    """Options of the expert `regions`."""

    candidates: int = Field(3, ge=1, le=10)
    """Most candidates per phrase."""


class Regions(Expert):
    """Colour, named or usual for the noun: connected areas of it at three levels of strictness, and segments (by
    Felzenszwalb and Huttenlocher, IJCV 2004) that have it. Size, position or relation alone: the segments. Ranked by
    how much a region looks like one object and by the words, then refined by GrabCut."""

    summary = "areas of the colour, size or position a phrase names: CIELAB colour naming, segmentation, GrabCut"
    limits = (
        "knows a noun only by its usual colour: any object of the colour or place will do; objects of many colours "
        "come in parts, plurals one by one"
    )
    needs = ("skimage",)
    Options = RegionsOptions
    options: RegionsOptions

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return f"regions-3+opencv-{cv2.__version__}+skimage-{version('scikit-image')}"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        read = [[(phrase, read_phrase(phrase)) for phrase in request.phrases] for request in requests]
        small = shrink(image)
        if small is None or not any(_applies(words) for phrases in read for _, words in phrases):
            return [[] for _ in requests]
        scene = _Scene(small)
        found = []
        for phrases in read:
            candidates = [
                Candidate(enlarge(scene.refined(region.part), *image.shape[:2]), score, phrase)
                for phrase, words in phrases
                if _applies(words)
                for region, score in _ranked(scene, words, self.options.candidates)
            ]
            candidates = [candidate for candidate in candidates if candidate.mask.any()]
            found.append(sorted(candidates, key=lambda candidate: -candidate.score))
        return found


def _applies(words: Words) -> bool:
    related = words.relation is not None and bool(words.relation[1].colours)
    return bool(words.colours) or words.placed or words.size != 0 or related


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of the image: `mask` bool at working size; `inside` and `around`, uint8, the part and its surroundings
    within the `window` that holds both; `centre` x, y as shares of width and height; `area` as a share of the image;
    `objectness` in [0, 1] how much it looks like one object: compact, neither tiny nor most of the image, not along
    the image's border."""

    mask: np.ndarray
    window: tuple[slice, slice]
    inside: np.ndarray
    around: np.ndarray
    centre: tuple[float, float]
    area: float
    objectness: float


@dataclass(frozen=True, eq=False)
class _Region:
    """A part with a `quality` in [0, 1]: how much it looks like one object of the colour."""

    part: _Part
    quality: float


class _Scene:
    """What depends on the image and not on the request, each part computed when first asked for."""

    def __init__(self, small: np.ndarray) -> None:
        self._small = small
        self._smooth = cv2.bilateralFilter(small, 5, 25, 3)
        self._lab = to_lab(self._smooth)
        self._regions: dict[tuple[str, ...], list[_Region]] = {}
        self._refined: dict[_Part, np.ndarray] = {}

    def regions(self, colours: tuple[str, ...]) -> list[_Region]:
        """Those of at least the least quality."""
        if colours not in self._regions:
            found = self._coloured(colours) if colours else self._uncoloured()
            self._regions[colours] = [region for region in found if region.quality >= _LEAST]
        return self._regions[colours]

    def refined(self, part: _Part) -> np.ndarray:
        if part not in self._refined:
            self._refined[part] = refine(self._small, part.mask)
        return self._refined[part]

    def _coloured(self, colours: tuple[str, ...]) -> Iterator[_Region]:
        share = cv2.GaussianBlur(colour_share(self._smooth, colours), (0, 0), 1.0)
        # People call a shaded or tinted object by its colour all the same: the looser levels keep it in one piece.
        levels = [cv2.connectedComponents((share > level).astype(np.uint8), connectivity=4)[1] for level in _LEVELS]
        for part in [*(part for labels in levels for part in _parts(labels, 1)), *self._segments]:
            near = share[part.window]
            distinct = cv2.mean(near, part.inside)[0] * (1 - cv2.mean(near, part.around)[0])
            yield _Region(part, distinct * part.objectness)

    def _uncoloured(self) -> Iterator[_Region]:
        for part in self._segments:
            lab = self._lab[part.window]
            contrast = np.linalg.norm(np.subtract(cv2.mean(lab, part.inside), cv2.mean(lab, part.around)))
            yield _Region(part, float(1 - np.exp(-contrast / 12)) * part.objectness)

    @cached_property
    def _segments(self) -> list[_Part]:
        # Here, because the command reads this module only to check the expert's options, and this takes a second.
        from skimage.segmentation import felzenszwalb

        labels = felzenszwalb(self._lab / 100, scale=150, sigma=0.8, min_size=50, channel_axis=2)
        return list(_parts(labels, 0))


def _parts(labels: np.ndarray, first: int) -> Iterator[_Part]:
    """The parts, of those labelled from `first` on, that may become regions."""
    sizes = np.bincount(labels.ravel())
    for k in range(first, len(sizes)):
        if _SMALLEST <= sizes[k] / labels.size <= _LARGEST:
            part = _part(tidy(labels == k))
            if part is not None:
                yield part


def _part(mask: np.ndarray) -> _Part | None:
    area = np.count_nonzero(mask) / mask.size
    if not _SMALLEST <= area <= _LARGEST:
        return None
    # Parts are many and small: only the surroundings of each are looked at.
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    above, before = max(0, top - _AROUND), max(0, left - _AROUND)
    window = np.s_[above : top + height + _AROUND, before : left + width + _AROUND]
    inside = mask[window].astype(np.uint8)
    hull = cv2.convexHull(np.concatenate(cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]))
    solidity = min(1.0, area * mask.size / max(1.0, cv2.contourArea(hull)))
    size = min(1.0, area / 0.04) ** 0.5 * min(1.0, (_LARGEST - area) / 0.4)
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    objectness = float(solidity * size * max(0.0, 1 - 2 * border))
    if objectness < _LEAST:
        return None
    kernel = np.ones((2 * _AROUND + 1, 2 * _AROUND + 1), np.uint8)
    around = cv2.dilate(inside, kernel) - inside
    moments = cv2.moments(inside, binaryImage=True)
    x, y = before + moments["m10"] / moments["m00"], above + moments["m01"] / moments["m00"]
    return _Part(mask, window, inside, around, (x / mask.shape[1], y / mask.shape[0]), area, objectness)


def _ranked(scene: _Scene, words: Words, most: int) -> list[tuple[_Region, float]]:
    """The best regions for the words with their scores, none mostly the same as a better one."""
    likely = scene.regions(words.colours)
    fit = word_fit(words, [region.part.area for region in likely], [region.part.centre for region in likely])
    if words.relation and words.relation[1].colours:
        fit = fit * _related(likely, words.relation[0], scene.regions(words.relation[1].colours))
    trust = _UNCOLOURED if not words.colours else _ASSUMED if words.assumed else 1.0
    scored = [(region, trust * region.quality * float(share)) for region, share in zip(likely, fit, strict=True)]
    kept: list[tuple[_Region, float]] = []
    for region, score in sorted(scored, key=lambda pair: -pair[1]):
        if score < _LEAST or len(kept) == most:
            break
        if all(mask_iou(region.part.mask, other.part.mask) < 0.6 for other, _ in kept):
            kept.append((region, score))
    return kept


def _related(regions: list[_Region], kind: str, references: list[_Region]) -> np.ndarray:
    """How well each region stands in a relation to the likeliest reference: float (regions,) in [0, 1].

    Falls with the distance between the centres beyond what the two sizes explain, and with the angle to the
    relation's direction; a region that is the reference itself gets 0.
    """
    fit = np.zeros(len(regions))
    best = max((reference.quality for reference in references), default=0.0)
    for reference in references:
        if reference.quality < 0.6 * best:
            continue
        for k, region in enumerate(regions):
            if mask_iou(region.part.mask, reference.part.mask) > 0.3:
                continue
            offset = np.subtract(region.part.centre, reference.part.centre)
            distance = float(np.hypot(*offset))
            sizes = 0.5 * (np.sqrt(region.part.area) + np.sqrt(reference.part.area))
            near = np.exp(-max(0.0, distance - sizes) / 0.15)
            along = float(np.dot(offset, DIRECTIONS[kind])) / max(distance, 1e-6)
            ahead = max(0.0, along) if any(DIRECTIONS[kind]) else 1.0
            fit[k] = max(fit[k], near * ahead * reference.quality / best)
    return fit
