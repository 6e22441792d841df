"""Zero-shot detection by the calls that transformers documents: what the detectors' own paths are compared with."""

from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor


@cache
def library(checkpoint: str) -> tuple[Any, Any]:
    """Processor and model of a checkpoint."""
    return AutoProcessor.from_pretrained(checkpoint), AutoModelForZeroShotObjectDetection.from_pretrained(checkpoint)


@torch.inference_mode()
def library_boxes(checkpoint: str, image: np.ndarray, **text: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes x1, y1, x2, y2 in pixels, inside the image and not empty, and their scores, best first.

    `text` are the processor's arguments that say what is looked for.
    """
    processor, model = library(checkpoint)
    inputs = processor(images=image, return_tensors="pt", **text)
    height, width = image.shape[:2]
    [found] = processor.post_process_grounded_object_detection(
        model.eval()(**inputs), threshold=0.0, target_sizes=[(height, width)]
    )
    order = found["scores"].argsort(descending=True)
    boxes = torch.minimum(found["boxes"][order].clamp(min=0), torch.tensor([width, height, width, height]))
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return boxes[inside], found["scores"][order][inside]
