"""Expert `regions`: parts of the image that have the colour, size or position that a phrase names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import cv2
import numpy as np
from pydantic import Field
from skimage.segmentation import felzenszwalb

from experts.base import Candidate, Expert, ExpertOptions, Request
from experts.lexicon import DIRECTIONS, Words, colour_shares, read_phrase, to_lab, word_fit
from experts.refine import enlarge, refine, shrink, tidy
from pipeline.masks import mask_iou

_SMALLEST, _LARGEST = 0.0015, 0.6
"""Shares of the image outside which a region is taken for noise or for the scene itself."""
_LEVELS = (0.6, 0.35, 0.15)
_AROUND = 4
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
        return f"regions-1+opencv-{cv2.__version__}+skimage-{version('scikit-image')}"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        read = [[(phrase, read_phrase(phrase)) for phrase in request.phrases] for request in requests]
        small = shrink(image)
        if small is None or not any(_applies(words) for phrases in read for _, words in phrases):
            return [[] for _ in requests]
        scene = _Scene(small)
        found = []
        for phrases in read:
            candidates = [
                Candidate(enlarge(scene.refined(region), *image.shape[:2]), score, phrase)
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
class _Region:
    """`mask` bool at working size; `quality` in [0, 1] how much it looks like one object of the colour;
    `centre` x, y as shares of width and height."""

    mask: np.ndarray
    quality: float
    centre: tuple[float, float]


class _Scene:
    """What depends on the image and not on the request, each part computed when first asked for."""

    def __init__(self, small: np.ndarray) -> None:
        self._small = small
        self._lab = to_lab(cv2.bilateralFilter(small, 5, 25, 3))
        self._shares: dict[str, np.ndarray] = {}
        self._regions: dict[tuple[str, ...], list[_Region]] = {}
        self._refined: dict[_Region, np.ndarray] = {}
        self._parts: list[np.ndarray] | None = None

    def regions(self, colours: tuple[str, ...]) -> list[_Region]:
        if colours not in self._regions:
            self._regions[colours] = self._coloured(colours) if colours else self._uncoloured()
        return self._regions[colours]

    def refined(self, region: _Region) -> np.ndarray:
        if region not in self._refined:
            self._refined[region] = refine(self._small, region.mask)
        return self._refined[region]

    def _coloured(self, colours: tuple[str, ...]) -> list[_Region]:
        self._shares = self._shares or colour_shares(self._lab)
        # Of several colours ("red and white") a pixel has one or another.
        share = cv2.GaussianBlur(np.sum([self._shares[name] for name in colours], axis=0), (0, 0), 1.0)
        # People call a shaded or tinted object by its colour all the same: the looser levels keep it in one piece.
        levels = [cv2.connectedComponents((share > level).astype(np.uint8), connectivity=4)[1] for level in _LEVELS]
        masks = [mask for labels in levels for mask in _masks(labels, 1)] + self._segments()
        return [self._region(mask, share) for mask in masks]

    def _uncoloured(self) -> list[_Region]:
        return [self._region(mask, None) for mask in self._segments()]

    def _segments(self) -> list[np.ndarray]:
        if self._parts is None:
            labels = felzenszwalb(self._lab / 100, scale=150, sigma=0.8, min_size=80, channel_axis=2)
            self._parts = list(_masks(labels, 0))
        return self._parts

    def _region(self, mask: np.ndarray, share: np.ndarray | None) -> _Region:
        # Regions are many and small: only the surroundings of each are looked at.
        left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
        above, before = max(0, top - _AROUND), max(0, left - _AROUND)
        window = np.s_[above : top + height + _AROUND, before : left + width + _AROUND]
        inside = mask[window]
        kernel = np.ones((2 * _AROUND + 1, 2 * _AROUND + 1), np.uint8)
        around = cv2.dilate(inside.astype(np.uint8), kernel).astype(bool) & ~inside
        if share is None:
            lab = self._lab[window]
            contrast = np.linalg.norm(lab[inside].mean(0) - lab[around].mean(0))
            distinct = float(1 - np.exp(-contrast / 12))
        else:
            near = share[window]
            distinct = float(near[inside].mean() * (1 - near[around].mean()))
        rows, columns = np.nonzero(inside)
        centre = (float((columns + before).mean()) / mask.shape[1], float((rows + above).mean()) / mask.shape[0])
        return _Region(mask, distinct * _objectness(mask), centre)


def _masks(labels: np.ndarray, first: int) -> Iterable[np.ndarray]:
    sizes = np.bincount(labels.ravel())
    for k in range(first, len(sizes)):
        if _SMALLEST <= sizes[k] / labels.size <= _LARGEST:
            mask = tidy(labels == k)
            if _SMALLEST <= mask.mean() <= _LARGEST:
                yield mask


def _objectness(mask: np.ndarray) -> float:
    """How much a region looks like one object, in [0, 1]: compact, neither tiny nor most of the image, not along
    the image's border."""
    points = cv2.findNonZero(mask.astype(np.uint8))
    solidity = min(1.0, len(points) / max(1.0, cv2.contourArea(cv2.convexHull(points))))
    area = len(points) / mask.size
    size = min(1.0, area / 0.04) ** 0.5 * float(np.clip((_LARGEST - area) / 0.4, 0, 1))
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    return solidity * size * float(np.clip(1 - 2 * border, 0, 1))


def _ranked(scene: _Scene, words: Words, most: int) -> list[tuple[_Region, float]]:
    """The best regions for the words with their scores, none mostly the same as a better one."""
    likely = [region for region in scene.regions(words.colours) if region.quality >= _LEAST]
    fit = word_fit(words, [region.mask.sum() for region in likely], [region.centre for region in likely])
    if words.relation and words.relation[1].colours:
        fit = fit * _related(likely, words.relation[0], scene.regions(words.relation[1].colours))
    trust = _UNCOLOURED if not words.colours else _ASSUMED if words.assumed else 1.0
    scored = [(region, trust * region.quality * float(share)) for region, share in zip(likely, fit, strict=True)]
    kept: list[tuple[_Region, float]] = []
    for region, score in sorted(scored, key=lambda pair: -pair[1]):
        if score < _LEAST or len(kept) == most:
            break
        if all(mask_iou(region.mask, other.mask) < 0.6 for other, _ in kept):
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
            if mask_iou(region.mask, reference.mask) > 0.3:
                continue
            offset = np.subtract(region.centre, reference.centre)
            distance = float(np.hypot(*offset))
            sizes = 0.5 * (np.sqrt(region.mask.mean()) + np.sqrt(reference.mask.mean()))
            near = np.exp(-max(0.0, distance - sizes) / 0.15)
            along = float(np.dot(offset, DIRECTIONS[kind])) / max(distance, 1e-6)
            ahead = max(0.0, along) if any(DIRECTIONS[kind]) else 1.0
            fit[k] = max(fit[k], near * ahead * reference.quality / best)
    return fit
