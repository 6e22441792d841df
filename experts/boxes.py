"""What detectors with a model of their own share: from its boxes and scores to detections."""

import math

import cv2
import numpy as np
import torch
from pydantic import Field
from torchvision.ops import nms

from experts.detector import Detection, DetectorOptions
from experts.model import ModelOptions

THINNEST = 1 / 30
"""Least ratio of the sides of an image for the Grounding DINO family. The models pick their 900 queries among the
positions of the feature maps, of which a thinner image, resized to 800 by at most 1333 as published, has too few."""


class BoxModelOptions(ModelOptions, DetectorOptions):
    """Of a text's boxes that overlap with an IoU above `nms` only the best-scored is kept, before the `top` are taken:
    a model has many more boxes than an image has objects, and the best ones are often of the same object."""

    nms: float = Field(0.7, ge=0, le=1)


def to_xyxy_px(boxes: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """Corners in pixels of boxes given as centre and size.

    Args:
        boxes: (…, 4): centre x, centre y, width, height, as shares of `width` and `height`; DETR's and OWL-ViT's form.

    Returns:
        (…, 4): x1, y1, x2, y2 in pixels.
    """
    x, y, w, h = boxes.unbind(-1)
    corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
    return corners * corners.new_tensor([width, height, width, height])


def best_boxes(
    boxes: torch.Tensor, scores: torch.Tensor, height: int, width: int, options: BoxModelOptions
) -> list[Detection]:
    """The boxes of one text that are worth keeping, best first: clipped to the image, not empty, of at least the
    threshold's score, and different from better ones.

    Args:
        boxes: (n, 4): x1, y1, x2, y2 in pixels, which may reach out of the image.
        scores: (n,) in [0, 1].
        height: of the image.
        width: of the image.
    """
    boxes, scores = boxes.float().cpu(), scores.float().cpu()
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    good = (scores >= options.threshold) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, scores = boxes[good], scores[good]
    kept = nms(boxes, scores, options.nms)
    return [
        Detection((x1, y1, x2, y2), score)
        for (x1, y1, x2, y2), score in zip(boxes[kept].tolist(), scores[kept].tolist(), strict=True)
    ]


def thick_enough(image: np.ndarray) -> np.ndarray:
    """The image, uint8 RGB (height, width, 3), made no thinner than `THINNEST` by black at its bottom or right."""
    height, width = image.shape[:2]
    least = math.ceil(max(height, width) * THINNEST)
    bottom, right = max(0, least - height), max(0, least - width)
    return cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
