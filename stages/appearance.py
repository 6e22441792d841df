"""What a mask's content looks like, to be held against words: its colours by name, and its shape and gradients."""

import cv2
import numpy as np

from experts.lexicon import PROTOTYPES, colour_shares
from pipeline.masks import mask_box

COLOURS = tuple(PROTOTYPES)
"""Colour words, in the order of the columns of `Palette.colours`."""
_LONG_SIDE = 224
"""Long side in pixels at which colours are counted."""
_RING = np.ones((9, 9), dtype=np.uint8)
_SIDE, _CELL, _GRID = 48, 12, 8
"""Sides in pixels of a mask's box when its gradients are counted, of their cells, and of the grid of its shape."""


class Palette:
    """An image's pixels by colour word: the costly part, done once for all masks on the image.

    Args:
        pixels: uint8 RGB (height, width, 3).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        scale = min(1.0, _LONG_SIDE / max(height, width))
        self._size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shares = np.moveaxis(colour_shares(cv2.resize(pixels, self._size, interpolation=cv2.INTER_AREA)), -1, 0)
        self._shares = np.stack([cv2.GaussianBlur(share, (0, 0), 1).ravel() for share in shares])
        self._totals = self._shares.sum(axis=1)

    def colours(self, mask: np.ndarray) -> np.ndarray:
        """How a mask, bool (height, width), and each of `COLOURS` fit: float32 (4, colours), all in [0, 1].

        The colour's share of the mask, its share of the ring around it, the mask's share of all of the colour in the
        image, and the overlap (soft IoU) of the mask with the colour.
        """
        soft = cv2.resize(mask.astype(np.float32), self._size, interpolation=cv2.INTER_AREA)
        ring = cv2.dilate(soft, _RING) - soft
        inside, around = self._shares @ soft.ravel(), self._shares @ ring.ravel()
        area = float(soft.sum())
        return np.stack(
            [
                inside / (area + 1e-6),
                around / (float(ring.sum()) + 1e-6),
                inside / (self._totals + 1e-6),
                inside / (self._totals + area - inside + 1e-6),
            ]
        )


def look(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Shape and gradients in the mask's box, stretched to a square: float32 (320,).

    Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of the image and of the mask, and the mask itself on
    a coarse grid. With few labelled pairs they tell one kind of thing from another better than a network trained from
    scratch, and in a fraction of the time.

    Args:
        pixels: uint8 RGB (height, width, 3).
        mask: bool (height, width) with at least one pixel.
    """
    # Here: an expert's worker, which imports this on its way to other things, has no reason to wait for it.
    from skimage.feature import hog

    left, top, right, bottom = (int(side) for side in mask_box(mask))
    window = np.s_[top:bottom, left:right]
    grey = cv2.cvtColor(np.ascontiguousarray(pixels[window]), cv2.COLOR_RGB2GRAY)
    shape = mask[window].astype(np.float32)
    parts = [cv2.resize(shape, (_GRID, _GRID), interpolation=cv2.INTER_AREA).ravel()]
    for picture in (grey, shape):
        square = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        parts.append(hog(square, orientations=8, pixels_per_cell=(_CELL, _CELL), cells_per_block=(1, 1)))
    return np.concatenate(parts).astype(np.float32)
