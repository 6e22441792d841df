"""What the small discriminator sees of a mask: contrast, edges, shape, place, colours and look, as figures."""

import cv2
import numpy as np

from stages.appearance import COLOURS, Palette, Zoom, box_of, look, stretched

_SIDE = 64
"""Side in pixels of the square to which the mask's surroundings are resampled."""
_CONTEXT, _LEAST_CONTEXT = 0.3, 8
"""Margin around the mask's box: share of the box's sides, and its least in pixels."""
_LIMITS = np.array([-6, -3, -2, -1, 0, 1, 2, 3, 6], dtype=np.float32)
"""Upper limits of all bands but the last along the outline, in pixels of signed distance, inside positive."""
_BANDS = len(_LIMITS) + 1
_ZONES = {"mask": (5, 10), "core": (8, 10), "rim": (5, 8), "ring": (2, 5), "far": (0, 2)}
"""First and last band, exclusive, of the mask, its inner part, its rim, the ring just outside, and what is beyond."""
_PAIRS = (("mask", "ring"), ("core", "ring"), ("rim", "ring"), ("core", "rim"), ("ring", "far"), ("mask", "far"))
"""Zones whose colours are compared."""
_PROFILE = ((1, 2), (2, 3), (3, 4), (4, 6), (6, 7), (7, 8), (8, 9))
"""First and last band, exclusive, of those in which edges are measured; the middle one holds the outline."""
_BINS = 256


class View:
    """An image, seen for the measuring of masks on it.

    Args:
        pixels: uint8 RGB (height, width, 3).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._zoom, self._palette = Zoom(pixels), Palette(pixels)
        self._known: dict[bytes, np.ndarray] = {}

    def measure(self, mask: np.ndarray) -> np.ndarray:
        """Figures of one mask: float32, always as many and in the same order.

        People outline objects: colours differ across a human mask's outline and not beyond it, image edges run along
        it, and the shape is whole and smooth. The mask's box with some context is resampled to one size, whatever made
        the mask, and contrast, edges and shape are measured there. Its colours and its look are for the words.

        Args:
            mask: bool (height, width) with at least one pixel.
        """
        mask = np.ascontiguousarray(mask)
        # Experts often give one mask for several instructions of an image.
        key = np.packbits(mask).tobytes()
        if key not in self._known:
            self._known[key] = self._figures(mask)
        return self._known[key].copy()

    def _figures(self, mask: np.ndarray) -> np.ndarray:
        colour, inside = _crop(self._zoom, mask)
        # OpenCV gives a huge distance where no pixel of the other kind exists.
        depth = np.clip(cv2.distanceTransform(inside, cv2.DIST_L2, 3), 0, _SIDE) - np.clip(
            cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3), 0, _SIDE
        )
        bands = np.searchsorted(_LIMITS, depth.ravel())
        plain = [*_place(mask), *_shape(inside), *_edges(colour, depth, bands), *_contrast(colour, bands)]
        parts = [np.array(plain, dtype=np.float32), self._palette.colours(mask).ravel(), look(self._zoom, mask)]
        return np.concatenate(parts).astype(np.float32)


STATISTICS = (6, 9, 10)
"""Indices of the figures that see the mask alone: log area, length of the outline over root of the area, solidity."""
_PLAIN = 72
"""Figures on place, shape, edges and contrast, in this order; those on colours and look follow."""


def colours_of(figures: np.ndarray) -> np.ndarray:
    """The part of a mask's figures that `Palette.colours` made: float32 (4, colours)."""
    return figures[_PLAIN : _PLAIN + 4 * len(COLOURS)].reshape(4, -1)


def centre_of(figures: np.ndarray) -> tuple[float, float]:
    """x and y of the centre of the mask's box, as shares of the image."""
    x1, y1, x2, y2 = (float(side) for side in figures[:4])
    return (x1 + x2) / 2, (y1 + y2) / 2


def _crop(zoom: Zoom, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A mask's box with its context: 8-bit CIELAB (side, side, 3), and the mask itself, uint8 0 or 1 (side, side)."""
    height, width = mask.shape
    x1, y1, x2, y2 = box_of(mask)
    across, down = (max(_LEAST_CONTEXT, _CONTEXT * side) for side in (x2 - x1, y2 - y1))
    left, top = int(max(0, x1 - across)), int(max(0, y1 - down))
    right, bottom = int(min(width, x2 + across)), int(min(height, y2 + down))
    lab = cv2.cvtColor(zoom.square((left, top, right, bottom), _SIDE), cv2.COLOR_RGB2LAB)
    soft = stretched(mask[top:bottom, left:right].astype(np.float32), _SIDE)
    # A mask thinner than a resampled pixel would vanish at one half.
    return lab, (soft >= min(0.5, float(soft.max()))).astype(np.uint8)


def _by_band(bands: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of values (n, ...) in each band: float64 (bands, n)."""
    return np.stack([np.bincount(bands, row.ravel(), _BANDS) for row in values], axis=1)


def _contrast(colour: np.ndarray, bands: np.ndarray) -> list[float]:
    """CIELAB means, spreads and histogram overlaps of the zones core, rim | ring, far on both sides."""
    channels = np.stack(cv2.split(colour)).astype(np.float64)
    sums = _by_band(bands, np.concatenate([channels, channels**2]))
    light, green_red, blue_yellow = cv2.split(cv2.LUT(colour, _BIN_TABLE))
    bins = (light + green_red + blue_yellow).ravel()
    counts = np.bincount(bands * _BINS + bins, minlength=_BANDS * _BINS).reshape(_BANDS, _BINS)
    means: dict[str, np.ndarray] = {}
    spreads: dict[str, np.ndarray] = {}
    histograms: dict[str, np.ndarray] = {}
    for name, (first, last) in _ZONES.items():
        histogram = counts[first:last].sum(axis=0)
        area = int(histogram.sum())
        if not area:
            # A zone that a thin or image-filling mask lacks is told from the mask by nothing.
            means[name], spreads[name], histograms[name] = means["mask"], spreads["mask"], histograms["mask"]
            continue
        mean, square = (sums[first:last].sum(axis=0) / area).reshape(2, 3)
        means[name], spreads[name] = mean, np.sqrt(np.maximum(square - mean**2, 0))
        histograms[name] = np.sqrt(histogram / area)
    figures = [*means["mask"], *spreads["mask"], *spreads["ring"]]
    figures.append(spreads["mask"].mean() / (spreads["ring"].mean() + 1))
    for one, other in _PAIRS:
        difference = means[one] - means[other]
        figures += [*difference, np.sqrt((difference**2).sum())]
        figures.append((histograms[one] * histograms[other]).sum())
    return [float(figure) for figure in figures]


def _bin_table() -> np.ndarray:
    """What each level of L, a and b, 8-bit, adds to the number of a colour's bin: uint8 (1, 256, 3)."""
    level = np.arange(256)
    across = np.clip((level - 96) // 8, 0, 7)
    return np.stack([level // 64 * 64, across * 8, across], axis=-1)[None].astype(np.uint8)


_BIN_TABLE = _bin_table()


def _edges(colour: np.ndarray, depth: np.ndarray, bands: np.ndarray) -> list[float]:
    """Gradient strength in bands along the outline relative to the crop's, and how far gradients point across."""
    across, down = cv2.Sobel(colour, cv2.CV_32F, 1, 0), cv2.Sobel(colour, cv2.CV_32F, 0, 1)
    light, green_red, blue_yellow = cv2.split(_length(across, down))
    smooth = cv2.GaussianBlur(depth, (0, 0), 1)
    normal_x, normal_y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    along = np.abs(across[..., 0] * normal_x + down[..., 0] * normal_y) / (_length(normal_x, normal_y) + 1e-3)
    values = np.stack([light, green_red + blue_yellow, along, np.ones_like(light)])
    sums = _by_band(bands, values)
    means = sums.sum(axis=0) / sums[:, 3].sum()
    profile = np.stack([sums[first:last].sum(axis=0) for first, last in _PROFILE])
    figures = [float(means[0])]
    for gradient in (0, 1):
        relative = profile[:, gradient] / np.maximum(profile[:, 3], 1) / (means[gradient] + 1)
        figures += np.where(profile[:, 3] > 0, relative, 1.0).tolist()
    outline = profile[len(_PROFILE) // 2]
    figures.append(float(outline[2] / (outline[0] + 1)))
    return figures


def _length(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    # Not `cv2.magnitude`, whose last bit depends on where the arrays lie in memory.
    return np.sqrt(across**2 + down**2)


def _shape(mask: np.ndarray) -> list[float]:
    """Outline length, solidity, parts, holes and roughness."""
    area = float(cv2.countNonZero(mask))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = sum(cv2.arcLength(contour, True) for contour in contours)
    hull = max(cv2.contourArea(cv2.convexHull(np.vstack(contours))), 1.0)
    largest = max(cv2.contourArea(contour) for contour in contours)
    filled = cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return [
        float(outline / np.sqrt(area)),
        area / hull,
        float(np.log(len(contours))),
        largest / area,
        1 - area / cv2.countNonZero(filled),
        cv2.countNonZero(opened ^ mask) / area,
        cv2.countNonZero(closed ^ mask) / area,
    ]


def _place(mask: np.ndarray) -> list[float]:
    """Box, area and contact with the image's border, as shares of the image."""
    height, width = mask.shape
    x1, y1, x2, y2 = box_of(mask)
    share = np.count_nonzero(mask) / mask.size
    border = sum(np.count_nonzero(edge) / edge.size for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) / 4
    extent = share * height * width / ((x2 - x1) * (y2 - y1))
    aspect = float(np.log((x2 - x1) / (y2 - y1)))
    return [
        x1 / width,
        y1 / height,
        x2 / width,
        y2 / height,
        aspect,
        share,
        float(np.log(share)),
        extent,
        border,
    ]
