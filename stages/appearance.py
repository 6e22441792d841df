"""What a mask's content looks like, to be held against words: its colours by name, and its shape and gradients."""

from functools import cache

import cv2
import numpy as np

from experts.lexicon import PROTOTYPES, colour_shares

COLOURS = tuple(PROTOTYPES)
"""Colour words, in the order of the columns of `Palette.colours`."""
_FINE, _COARSE = 224, 112
"""Long sides in pixels at which pixels are given their colours, and at which masks count them."""
_RING = np.ones((5, 5), dtype=np.uint8)
_SIDE, _CELL, _GRID = 48, 12, 8
"""Sides in pixels of a mask's box when its gradients are counted, of their cells, and of the grid of its shape."""
_TURNS, _CLIP = 8, 0.2
"""Bins of the gradients' orientation, and where a cell's normalised histogram is clipped (L2-Hys)."""

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; x2 and y2 are exclusive."""


class Zoom:
    """An image to look at through windows of any size: its halved copies are made once, when first needed.

    Args:
        pixels: uint8 RGB (height, width, 3).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._copies = {(0, 0): np.ascontiguousarray(pixels)}

    def square(self, box: Box, side: int) -> np.ndarray:
        """The image within a box, stretched to a square: uint8 RGB (side, side, 3).

        Each axis is halved as often as it can be with `side` pixels left (Williams, Pyramidal Parametrics, SIGGRAPH
        1983), which takes a tenth of the time of resampling by area.
        """
        x1, y1, x2, y2 = box
        across, down = (max(0, (length // side).bit_length() - 1) for length in (x2 - x1, y2 - y1))
        step_x, step_y = ((x2 - x1) / side, (y2 - y1) / side)
        to_source = np.array(
            [
                [step_x / 2**across, 0, (x1 + step_x / 2) / 2**across - 0.5],
                [0, step_y / 2**down, (y1 + step_y / 2) / 2**down - 0.5],
            ]
        )
        return cv2.warpAffine(
            self._copy(across, down),
            to_source,
            (side, side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def _copy(self, across: int, down: int) -> np.ndarray:
        """The image halved so often in width and in height; a last odd column or row is left out."""
        if (across, down) not in self._copies:
            by_x, by_y = (2, 1) if across else (1, 2)
            larger = self._copy(across - 1, down) if across else self._copy(across, down - 1)
            height, width = larger.shape[0] // by_y, larger.shape[1] // by_x
            even = larger[: height * by_y, : width * by_x]
            self._copies[across, down] = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
        return self._copies[across, down]


class Palette:
    """An image's pixels by colour word: the costly part, done once for all masks on the image.

    Args:
        pixels: uint8 RGB (height, width, 3).
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._size = _size(pixels, _COARSE)
        shares = colour_shares(cv2.resize(pixels, _size(pixels, _FINE), interpolation=cv2.INTER_AREA))
        self._shares = np.stack(
            [cv2.resize(share, self._size, interpolation=cv2.INTER_AREA) for share in np.moveaxis(shares, 2, 0)]
        )
        self._totals = self._shares.sum(axis=(1, 2))

    def colours(self, mask: np.ndarray) -> np.ndarray:
        """How a mask, bool (height, width), and each of `COLOURS` fit: float32 (4, colours), all in [0, 1].

        The colour's share of the mask, its share of the ring around it, the mask's share of all of the colour in the
        image, and the overlap (soft IoU) of the mask with the colour.
        """
        soft = cv2.resize(mask.astype(np.float32), self._size, interpolation=cv2.INTER_AREA)
        ring = cv2.dilate(soft, _RING) - soft
        # Not `@`: BLAS would start threads, and their waiting takes ten times as long as the sum.
        inside, around = np.einsum("zyx,cyx->zc", np.stack([soft, ring]), self._shares)
        area = float(soft.sum())
        return np.stack(
            [
                inside / (area + 1e-6),
                around / (float(ring.sum()) + 1e-6),
                inside / (self._totals + 1e-6),
                inside / (self._totals + area - inside + 1e-6),
            ]
        )


def look(zoom: Zoom, mask: np.ndarray) -> np.ndarray:
    """Shape and gradients in the mask's box, stretched to a square: float32 (320,).

    Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) of the image and of the mask, and the mask itself on
    a coarse grid. With few labelled pairs they tell one kind of thing from another better than a network trained from
    scratch, and in a fraction of the time.

    Args:
        zoom: the image.
        mask: bool (height, width) with at least one pixel.
    """
    box = box_of(mask)
    grey = cv2.cvtColor(zoom.square(box, _SIDE), cv2.COLOR_RGB2GRAY)
    left, top, right, bottom = box
    shape = mask[top:bottom, left:right].astype(np.float32)
    square, grid = stretched(shape, _SIDE), stretched(shape, _GRID)
    return np.concatenate([grid.ravel(), _gradients(grey), _gradients(square)]).astype(np.float32)


def stretched(picture: np.ndarray, side: int) -> np.ndarray:
    """Float32 (height, width) resampled to (side, side).

    In two steps: `cv2.INTER_AREA` shifts what it shrinks along one axis and stretches along the other.
    """
    height, width = picture.shape
    shrunk = cv2.resize(picture, (min(width, side), min(height, side)), interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, (side, side), interpolation=cv2.INTER_LINEAR)


def box_of(mask: np.ndarray) -> Box:
    """Tight box of a non-empty mask, bool (height, width)."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return left, top, left + width, top + height


def _size(pixels: np.ndarray, long_side: int) -> tuple[int, int]:
    """Width and height of an image that is made no longer than this."""
    height, width = pixels.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


@cache
def _cells() -> np.ndarray:
    """Number of the cell of each pixel of the square, times the bins of each: int64 (side squared,)."""
    cell = np.arange(_SIDE) // _CELL
    return ((cell[:, None] * (_SIDE // _CELL) + cell) * _TURNS).ravel()


def _gradients(square: np.ndarray) -> np.ndarray:
    """Histograms of unsigned orientation in cells, each normalised by itself: float64 (cells * bins,)."""
    across, down = (cv2.Sobel(square, cv2.CV_32F, *axis, ksize=1) for axis in ((1, 0), (0, 1)))
    strength, angle = cv2.cartToPolar(across, down)
    turn = (angle.ravel() * (_TURNS / np.pi)).astype(np.int64) % _TURNS
    size = (_SIDE // _CELL) ** 2 * _TURNS
    found = np.bincount(_cells() + turn, strength.ravel(), size).reshape(-1, _TURNS) / _CELL**2
    return _unit(np.minimum(_unit(found), _CLIP)).ravel()


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True) + 1e-10)
