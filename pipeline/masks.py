"""Mask codecs: COCO RLE by pycocotools, 8-bit PNG heatmaps, and the mask specifications that readers give."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from pipeline.errors import BadImage, BadMask
from pipeline.images import open_image

MAX_OUTLINE = 1_000_000
"""Longest polygon outline in pixels: pycocotools keeps 5 points per pixel of it, and does not check its memory."""


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Bool or 0/1 mask (height, width) as an RLE cell {"size": [height, width], "counts": bytes}."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"]}


def decode_rle(cell: Mapping[str, Any]) -> np.ndarray:
    """An RLE cell of a run's tables, as pandas or pyarrow return it, as a bool array (height, width).

    Only for cells that `encode_rle` wrote: pycocotools corrupts memory on others.
    """
    return coco.decode(_rle(cell)).astype(bool)


def rle_area(cell: Mapping[str, Any]) -> float:
    """Share of the image in [0, 1] that an RLE cell covers, without decoding it."""
    height, width = cell["size"]
    return float(coco.area(_rle(cell))) / (int(height) * int(width))


def _rle(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": [int(side) for side in cell["size"]], "counts": cell["counts"]}


def encode_heatmap(heatmap: np.ndarray) -> bytes:
    """Float heatmap (height, width) in [0, 1] as an 8-bit grey PNG."""
    grey = np.round(np.clip(heatmap, 0.0, 1.0) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_heatmap(png: bytes) -> np.ndarray:
    """8-bit grey PNG as float32 (height, width) in [0, 1]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"), dtype=np.float32) / 255


def mask_box(mask: np.ndarray) -> list[float]:
    """Tight box x1, y1, x2, y2 in pixels of a non-empty mask; x2 and y2 are exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks of one shape; two empty masks agree: 1."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0


def mask_from_spec(spec: str, height: int, width: int, read: Callable[[str], bytes]) -> np.ndarray:
    """Bool mask (height, width) of a reader's mask specification, a JSON object with one of the keys

    `rle`: COCO RLE {"size": [height, width], "counts": string or list of run lengths};
    `polygons`: a list of outlines x1, y1, x2, y2, … in pixels, or one such outline; the mask is their union;
    `box`: x1, y1, x2, y2 in pixels;
    `file`: an image in black and white, 0 and 1, or grey: from half of its highest value on is mask; alpha is ignored;
    `heatmap`: a grey image as IVM-Mix-1M releases it, see `_from_heatmap`;
    `union`: a list of specifications.

    `read` returns the bytes of a `file` or `heatmap`; what it raises is passed on.

    Raises:
        BadMask: it is malformed, of another size than the image, or has no pixel inside it.
    """
    try:
        parsed = json.loads(spec)
    except (ValueError, RecursionError) as error:
        raise BadMask(f"the human mask is not JSON: {error}") from error
    mask = _from_parsed(parsed, height, width, read)
    if not mask.any():
        raise BadMask(f"the human mask has no pixel inside the {width}x{height} image")
    return mask


def _from_parsed(spec: Any, height: int, width: int, read: Callable[[str], bytes]) -> np.ndarray:
    if not isinstance(spec, dict) or len(spec) != 1:
        raise BadMask("a human mask is an object with one key: rle, polygons, box or file")
    match next(iter(spec.items())):
        case "rle", {"size": size, "counts": counts}:
            return _from_rle(size, counts, height, width)
        case "polygons", [_, *_] as polygons:
            return _from_polygons(polygons, height, width)
        case "box", box:
            return _from_box(box, height, width)
        case "file", str(name):
            levels = _grey(read(name), name, height, width)
            return (levels >= levels.max() / 2) & (levels > 0)
        case "heatmap", str(name):
            return _from_heatmap(_grey(read(name), name, height, width))
        case "union", [_, *_] as parts:
            return np.logical_or.reduce([_from_parsed(part, height, width, read) for part in parts])
    problem = f"a human mask given as '{next(iter(spec))}' cannot be read"
    raise BadMask(f"{problem}: give rle with size and counts, polygons, box or file")


def _check_size(mask_height: int, mask_width: int, height: int, width: int) -> None:
    if (mask_height, mask_width) != (height, width):
        raise BadMask(f"the human mask is {mask_width}x{mask_height} (width x height), its image {width}x{height}")


def _from_rle(size: Any, counts: Any, height: int, width: int) -> np.ndarray:
    """Decoded here and not by pycocotools, which writes past its memory if the counts are corrupt."""
    try:
        _check_size(int(size[0]), int(size[1]), height, width)
        runs = np.asarray(_run_lengths(counts) if isinstance(counts, str) else counts, dtype=np.int64)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise BadMask(f"not a COCO RLE: {error}") from error
    if runs.ndim != 1 or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise BadMask(f"not a COCO RLE: its counts do not add up to {height}x{width} pixels")
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T


def _run_lengths(counts: str) -> list[int]:
    """Run lengths of COCO's compressed counts (maskApi.c, rleFrString): 5 bits per character, lowest first, with a
    continuation bit; signed; from the fourth on, differences to the run before the last."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"corrupt counts at run {len(runs)}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("truncated counts")
    return runs


def _from_polygons(polygons: Sequence[Any], height: int, width: int) -> np.ndarray:
    outlines = polygons if isinstance(polygons[0], list) else [polygons]
    for outline in outlines:
        try:
            points = np.asarray(outline, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadMask(f"a polygon must be a flat list of numbers x1, y1, x2, y2, …: {error}") from error
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise BadMask("a polygon must be a flat list x1, y1, x2, y2, … of at least 3 points")
        points = points.reshape(-1, 2)
        length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if np.abs(points).max() > MAX_OUTLINE or length > MAX_OUTLINE:
            raise BadMask(f"a polygon reaches or runs over more than {MAX_OUTLINE:,} pixels")
    return coco.decode(coco.merge(coco.frPyObjects(outlines, height, width))).astype(bool)


def _from_box(box: Any, height: int, width: int) -> np.ndarray:
    try:
        x1, y1, x2, y2 = (float(side) for side in box)
        left, top, right, bottom = round(x1), round(y1), round(x2), round(y2)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadMask(f"a box must be four finite numbers x1, y1, x2, y2: {error}") from error
    if x1 >= x2 or y1 >= y2:
        raise BadMask(f"the box {[x1, y1, x2, y2]} is not x1 < x2, y1 < y2; corners are wanted, not width and height")
    mask = np.zeros((height, width), dtype=bool)
    mask[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return mask


def _from_heatmap(levels: np.ndarray) -> np.ndarray:
    """Half and above of a released IVM-Mix-1M mask after what its reader does to it: times 1.5, saturated at 255, then
    stretched from lowest to highest; a constant one is all mask (2toinf/IVM, IVM_1M_Mix/datareader.py)."""
    bright = np.minimum(np.round(levels * 1.5), 255)
    low, high = bright.min(), bright.max()
    return bright >= (low + high) / 2 if high > 0 else np.zeros(levels.shape, dtype=bool)


def _grey(data: bytes, name: str, height: int, width: int) -> np.ndarray:
    """Grey levels (height, width) of an image file, of the file's own range."""
    try:
        image = open_image(data)
        _check_size(image.height, image.width, height, width)
        return np.asarray(image if image.mode[0] in "IF" else image.convert("L"))
    except (BadImage, BadMask, ValueError) as error:
        raise BadMask(f"mask file '{name}': {error}") from error
