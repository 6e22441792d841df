"""What the small discriminator sees of a mask: contrast, edges, shape, place, colours and look, as figures."""

from itertools import pairwise

import cv2
import numpy as np

from pipeline.masks import mask_box
from stages.appearance import COLOURS, Palette, look

_SIDE = 96
"""Side in pixels of the square to which the mask's surroundings are resampled."""
_CONTEXT, _LEAST_CONTEXT = 0.3, 8
"""Margin around the mask's box: share of the box's sides, and its least in pixels."""
_ZONE = 4
"""Width in pixels of the rim just inside the mask and of the ring just outside."""
_PROFILE = (-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0)
"""Limits of the bands along the outline, in pixels of signed distance, in which edges are measured."""


class View:
    """An image, seen for the measuring of masks on it.

    Args:
        pixels: uint8 RGB (height, width, 3).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels, self._palette = pixels, Palette(pixels)

    def measure(self, mask: np.ndarray) -> np.ndarray:
        """Figures of one mask: float32, always as many and in the same order.

        People outline objects: colours differ across a human mask's outline and not beyond it, image edges run along
        it, and the shape is whole and smooth. The mask's box with some context is resampled to one size, whatever made
        the mask, and contrast, edges and shape are measured there. Its colours and its look are for the words.

        Args:
            mask: bool (height, width) with at least one pixel.
        """
        colour, inside = _crop(self._pixels, mask)
        background = (~inside).astype(np.uint8)
        # OpenCV gives a huge distance where no pixel of the other kind exists.
        depth = np.clip(cv2.distanceTransform(1 - background, cv2.DIST_L2, 3), 0, _SIDE) - np.clip(
            cv2.distanceTransform(background, cv2.DIST_L2, 3), 0, _SIDE
        )
        plain = [*_place(mask), *_shape(inside), *_edges(colour, depth), *_contrast(colour, depth)]
        parts = [np.array(plain, dtype=np.float32), self._palette.colours(mask).ravel(), look(self._pixels, mask)]
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


def _crop(pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height, width = mask.shape
    x1, y1, x2, y2 = mask_box(mask)
    across, down = (max(_LEAST_CONTEXT, _CONTEXT * side) for side in (x2 - x1, y2 - y1))
    window = np.s_[
        int(max(0, y1 - down)) : int(min(height, y2 + down)),
        int(max(0, x1 - across)) : int(min(width, x2 + across)),
    ]
    rgb = cv2.resize(pixels[window], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(mask[window].astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    # A mask thinner than a resampled pixel would vanish at one half.
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32), soft >= min(0.5, float(soft.max()))


def _contrast(colour: np.ndarray, depth: np.ndarray) -> list[float]:
    """CIELAB means, spreads and histogram overlaps of the zones core, rim | ring, far on both sides."""
    zones = {
        "mask": depth > 0,
        "core": depth > _ZONE,
        "rim": (depth > 0) & (depth <= _ZONE),
        "ring": (depth < 0) & (depth >= -_ZONE),
        "far": depth < -_ZONE,
    }
    lightness, green_red, blue_yellow = (colour[..., channel].astype(int) for channel in range(3))
    bins = (lightness // 64) * 64 + np.clip((green_red - 96) // 8, 0, 7) * 8
    bins += np.clip((blue_yellow - 96) // 8, 0, 7)
    means, spreads, histograms = {}, {}, {}
    for name, zone in zones.items():
        # A zone that a thin or image-filling mask lacks is told from the mask by nothing.
        zone = zone if zone.any() else zones["mask"]
        means[name], spreads[name] = colour[zone].mean(axis=0), colour[zone].std(axis=0)
        histograms[name] = np.bincount(bins[zone], minlength=256) / zone.sum()
    figures = [*means["mask"], *spreads["mask"], *spreads["ring"]]
    figures.append(spreads["mask"].mean() / (spreads["ring"].mean() + 1))
    pairs = (("mask", "ring"), ("core", "ring"), ("rim", "ring"), ("core", "rim"), ("ring", "far"), ("mask", "far"))
    for first, second in pairs:
        difference = means[first] - means[second]
        figures += [*difference, np.linalg.norm(difference)]
        figures.append(np.sqrt(histograms[first] * histograms[second]).sum())
    return [float(figure) for figure in figures]


def _edges(colour: np.ndarray, depth: np.ndarray) -> list[float]:
    """Gradient strength in bands along the outline relative to the crop's, and how far gradients point across."""
    across = [cv2.Sobel(colour[..., channel], cv2.CV_32F, 1, 0) for channel in range(3)]
    down = [cv2.Sobel(colour[..., channel], cv2.CV_32F, 0, 1) for channel in range(3)]
    strength = [np.hypot(x, y) for x, y in zip(across, down, strict=True)]
    figures = [float(strength[0].mean())]
    for gradient in (strength[0], strength[1] + strength[2]):
        for low, high in pairwise(_PROFILE):
            band = (depth > low) & (depth <= high)
            figures.append(float(gradient[band].mean() / (gradient.mean() + 1)) if band.any() else 1.0)
    smooth = cv2.GaussianBlur(depth.astype(np.float32), (0, 0), 1)
    normal_x, normal_y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    outline = np.abs(depth) <= 1
    along = np.abs(across[0] * normal_x + down[0] * normal_y) / (np.hypot(normal_x, normal_y) + 1e-3)
    figures.append(float(along[outline].sum() / (strength[0][outline].sum() + 1)))
    return figures


def _shape(inside: np.ndarray) -> list[float]:
    """Outline length, solidity, parts, holes and roughness."""
    mask = inside.astype(np.uint8)
    area = float(mask.sum())
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
        1 - area / float(filled.sum()),
        float((opened != mask).sum() / area),
        float((closed != mask).sum() / area),
    ]


def _place(mask: np.ndarray) -> list[float]:
    """Box, area and contact with the image's border, as shares of the image."""
    height, width = mask.shape
    x1, y1, x2, y2 = mask_box(mask)
    share = float(mask.mean())
    border = float(np.mean([mask[0].mean(), mask[-1].mean(), mask[:, 0].mean(), mask[:, -1].mean()]))
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
