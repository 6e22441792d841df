"""Boxes in the answers of vision language models: how they are written, and which coordinates they are in.

Conventions, by what a coordinate counts:
- `pixels`: pixels of the image as the model's processor resized it. The view sent is of a size that the processor of
  Qwen2.5-VL leaves alone, so that these are the view's own.
- `thousand`: thousandths of width and height.
- `unit`: fractions of width and height.
- `unit_square`: fractions of the side of the square that the image was padded to, in its middle. The view sent is
  that square already.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

Convention = Literal["pixels", "thousand", "unit", "unit_square"]
Box = tuple[float, float, float, float]

_FAMILIES: tuple[tuple[str, Convention], ...] = (
    # QwenLM/Qwen3-VL issues 676 (2.5: pixels after the processor), 866 (2: thousandths), 1486 (3).
    (r"qwen-?2[._-]5-?vl", "pixels"),
    (r"qwen-?vl|qwen-?2-?vl|qwen-?3", "thousand"),
    # InternVL's documentation, "Grounding / Detection Data"; OpenBMB/MiniCPM-V issue 982; GLM-V's grounding notes.
    (r"internvl|minicpm-[vo]|glm-4\.\d+v", "thousand"),
    # haotian-liu/LLaVA issue 606 (deepcs233/Visual-CoT is trained on the same layout).
    (r"llava-(v?1\.5|1\.5)|viscot", "unit_square"),
)

_PATCH = 28
_MIN_PIXELS = 256 * _PATCH**2
"""Small images are enlarged to this: a server may be set to do so, Qwen's own example is, and would shift pixels."""
_MAX_ASPECT = 100
"""Longer images are sent as if thicker. Qwen's processors refuse 200, which rounding to patches can double."""
_PADDING = (122, 116, 104)
"""The mean colour of CLIP's training images, with which LLaVA pads."""

_NUMBER = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
_LIST = re.compile(
    rf"(?:\[|<box>)\s*({_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER})+)\s*(?:\]|</box>)"
    rf"|\(\s*({_NUMBER}\s*,\s*{_NUMBER})\s*\)\s*,?\s*\(\s*({_NUMBER}\s*,\s*{_NUMBER})\s*\)",
    re.ASCII | re.IGNORECASE,
)
_NOTHING = re.compile(r"\[\s*\]")


class UnreadableAnswer(ValueError):
    """A model's answer holds neither boxes nor an empty list, or boxes that cannot be in the convention assumed."""


def convention_of(model: str) -> Convention | None:
    """The convention of a model family, told by the model's name as servers use it; None for an unknown one."""
    matches = (convention for pattern, convention in _FAMILIES if re.search(pattern, model, re.IGNORECASE))
    return next(matches, None)


def parse_boxes(answer: str) -> list[Box]:
    """The different boxes x1, y1, x2, y2 in an answer, in its order and its own coordinates, corners sorted.

    Read are lists of four numbers, in JSON, in a code fence, or in prose (`[x1, y1, x2, y2]`: Qwen2.5-VL and later,
    InternVL, GLM-V, VisCoT), pairs of points (`(x1,y1),(x2,y2)`: Qwen-VL and Qwen2-VL) and MiniCPM-V's
    `<box>x1 y1 x2 y2</box>`. What a model thinks before `</think>` is not its answer.

    Raises:
        UnreadableAnswer: no box and no empty list, or a list of another number of coordinates.
    """
    text = answer.rpartition("</think>")[2]
    boxes = []
    for match in _LIST.finditer(text):
        numbers = [float(number) for number in re.findall(_NUMBER, " ".join(filter(None, match.groups())), re.I)]
        if len(numbers) != 4:
            raise UnreadableAnswer(f"a list of {len(numbers)} numbers is no box: {_shown(answer)}")
        x1, y1, x2, y2 = numbers
        boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
    if not boxes and not _NOTHING.search(text):
        raise UnreadableAnswer(f"no box and no empty list in the answer: {_shown(answer)}")
    return list(dict.fromkeys(boxes))


def _shown(answer: str) -> str:
    return repr(answer[:200])


@dataclass(frozen=True, eq=False)
class View:
    """An image as it is sent to a model: `pixels` uint8 RGB (height, width, 3).

    It spans the rectangle `spans` (x1, y1, x2, y2) of the image, `width` by `height` pixels, beyond which it may go
    where it is padded; `units` are the model's coordinates of its right and lower border.
    """

    pixels: np.ndarray
    spans: Box
    width: int
    height: int
    units: tuple[float, float]

    def place(self, box: Box) -> Box | None:
        """A box in the model's coordinates as pixels of the image, cut off at its borders; None if nothing is left.

        Raises:
            UnreadableAnswer: it reaches far out of the view, or is in fractions where units are larger.
        """
        right, lower = self.units
        too_large = max(box[2] / right, box[3] / lower) > 1.1 or min(box[0] / right, box[1] / lower) < -0.1
        if too_large or 0 < max(box) <= 1 < right:
            raise UnreadableAnswer(
                f"box {list(box)} is not in coordinates of 0 to {right:g} and 0 to {lower:g}: set option 'coordinates'"
            )
        x1, y1, x2, y2 = self.spans
        placed = np.array([x1, y1, x1, y1]) + np.array(box) / [*self.units, *self.units] * np.tile(
            [x2 - x1, y2 - y1], 2
        )
        left, top, right, bottom = np.clip(placed, 0, [self.width, self.height, self.width, self.height]).tolist()
        return (left, top, right, bottom) if left < right and top < bottom else None


def view_of(image: np.ndarray, convention: Convention, max_pixels: int) -> View:
    """What to send of an image, uint8 RGB (height, width, 3): at most `max_pixels`, at least 448 x 448 of them.

    Its sides are multiples of 28, which the processors of Qwen2-VL and Qwen2.5-VL leave alone (`smart_resize` of
    their published processor); the aspect ratio gives way to that, by a few percent.
    """
    height, width = image.shape[:2]
    if convention == "unit_square":
        return _square(image, max_pixels)
    least = math.ceil(max(height, width) / _MAX_ASPECT)
    rows, columns = _size(max(height, least), max(width, least), max_pixels)
    units = {"pixels": (columns, rows), "thousand": (1000, 1000), "unit": (1, 1)}[convention]
    return View(_resized(image, rows, columns), (0, 0, width, height), width, height, units)


def _size(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    rows, columns = smart_resize(height, width, _PATCH, _MIN_PIXELS, max_pixels)
    return rows, columns


def _square(image: np.ndarray, max_pixels: int) -> View:
    height, width = image.shape[:2]
    side, _ = _size(max(height, width), max(height, width), max_pixels)
    rows, columns = (max(1, round(length * side / max(height, width))) for length in (height, width))
    top, left = (side - rows) // 2, (side - columns) // 2
    pixels = np.full((side, side, 3), _PADDING, dtype=np.uint8)
    pixels[top : top + rows, left : left + columns] = _resized(image, rows, columns)
    across, down = width / columns, height / rows
    spans = (-left * across, -top * down, (side - left) * across, (side - top) * down)
    return View(pixels, spans, width, height, (1, 1))


def _resized(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    shrinks = rows * columns < image.shape[0] * image.shape[1]
    return cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
