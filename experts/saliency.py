"""Expert `saliency`: what stands out from the image's background, as a soft heatmap."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import cv2
import numpy as np

from experts.base import Candidate, Expert, ExpertOptions, Request
from experts.lexicon import to_lab
from experts.refine import enlarge, refine, shrink, tidy

_SUPERPIXELS = 250
_SPATIAL = 0.25
"""Share of the long side over which superpixels are compared (the paper's sigma_spa)."""
_FAINT, _FULL = 6.0, 30.0
"""Contrast with the background, in CIELAB units, that counts as none and as full."""


class Saliency(Expert):
    """Robust background detection (Zhu, Liang, Wei and Sun, CVPR 2014): a superpixel is background if the area that
    it is connected to by like colours runs far along the image's border; salient is what contrasts with background
    near it. Contrast is on a fixed scale, not stretched per image, and weighed by closeness to the centre."""

    summary = "whatever stands out from the background, soft: boundary-connectivity saliency on superpixels"
    limits = "a prior: blind to what is asked, so all instructions of an image get the same heatmap"
    needs = ("skimage", "scipy")

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return f"saliency-2+opencv-{cv2.__version__}+skimage-{version('scikit-image')}"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        small = shrink(image)
        if small is None or not any(request.phrases for request in requests):
            return [[] for _ in requests]
        saliency = _saliency(small)
        rough = tidy(saliency > 0.5)
        if not 0.002 < rough.mean() < 0.6:
            return [[] for _ in requests]
        cut = refine(small, rough)
        height, width = image.shape[:2]
        mask = enlarge(cut, height, width)
        # The superpixels' outlines are coarse: the cut's edges lead, their grey values stay.
        soft = cv2.GaussianBlur(np.where(cut, np.maximum(saliency, 0.5), np.minimum(saliency, 0.5)), (0, 0), 1.0)
        heatmap = np.clip(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1)
        # Sure of itself where the inside is salient, the outside is not, and it is in one place; but never of being
        # what was asked for.
        score = float(0.5 * saliency[cut].mean() * (1 - saliency[~cut].mean()) * _compactness(cut))
        found = Candidate(mask, score, "", heatmap.astype(np.float32))
        return [[replace(found, phrase=request.instruction)] if request.phrases else [] for request in requests]


def _saliency(small: np.ndarray) -> np.ndarray:
    """float32 (height, width) in [0, 1] of uint8 RGB (height, width, 3): the paper's boundary connectivity and
    background-weighted contrast, without its global optimisation."""
    # Here, because the command reads this module only to check the expert's options, and this takes a second.
    from skimage.segmentation import slic

    lab = to_lab(small)
    height, width = small.shape[:2]
    labels = slic(lab, n_segments=_SUPERPIXELS, compactness=12, max_num_iter=5, start_label=0, convert2lab=False)
    count = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel(), minlength=count)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(labels.ravel(), values.ravel(), count) / sizes

    colour = np.stack([mean(lab[..., channel]) for channel in range(3)], axis=1)
    rows, columns = np.indices((height, width)) / max(height, width)
    centre = np.stack([mean(rows), mean(columns)], axis=1)
    border = np.zeros((height, width))
    border[[0, -1]] = border[:, [0, -1]] = 1
    at_border = mean(border) > 0
    apart = _distances(colour)

    reach = np.exp(-(_geodesic(labels, apart, at_border) ** 2) / (2 * 10.0**2))
    connectivity = reach @ at_border / np.sqrt(reach.sum(1))
    background = 1 - np.exp(-(connectivity**2) / 2)
    weight = np.exp(-(_distances(centre) ** 2) / (2 * _SPATIAL**2)) * background
    contrast = (apart * weight).sum(1) / np.maximum(weight.sum(1), 1e-6) * (1 - background)

    offset = (centre - centre.mean(0)) / (np.array([height, width]) / max(height, width))
    centred = np.exp(-(offset**2).sum(1) / (2 * 0.4**2))
    salient = np.clip((contrast * centred - _FAINT) / (_FULL - _FAINT), 0, 1)
    return salient[labels].astype(np.float32)


def _geodesic(labels: np.ndarray, apart: np.ndarray, at_border: np.ndarray) -> np.ndarray:
    """Least sum of CIELAB steps between adjacent superpixels, for every pair (Floyd-Warshall); those at the image's
    border are all adjacent."""
    from scipy.sparse.csgraph import csgraph_from_dense, floyd_warshall

    adjacent = at_border[:, None] & at_border
    adjacent[labels[:, :-1], labels[:, 1:]] = True
    adjacent[labels[:-1], labels[1:]] = True
    # As a sparse matrix, which tells a step of 0 from no step. Small steps are texture and noise, not borders.
    steps = np.where(adjacent | adjacent.T, np.maximum(apart - 3.0, 0), np.inf)
    return floyd_warshall(csgraph_from_dense(steps, null_value=np.inf))


def _distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points, axis=2)


def _compactness(mask: np.ndarray) -> float:
    points = cv2.findNonZero(mask.astype(np.uint8))
    return min(1.0, len(points) / max(1.0, cv2.contourArea(cv2.convexHull(points))))
