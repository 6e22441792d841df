"""Proposals: masks of everything in an image, whatever is asked, by any segmenter that takes points."""

import numpy as np
import torch
from pydantic import Field
from torchvision.ops import masks_to_boxes, nms

from experts.base import ExpertOptions
from experts.segmenter import Encoded, Masks, Segmenter
from pipeline.masks import decode_rle, encode_rle

_MASK_BYTES = 2**28
"""Memory for the masks of the points that are segmented at once, before most of them are dropped."""
_POINTS = 64
"""Points segmented at once at most, the library's `points_per_batch`."""


class ProposalOptions(ExpertOptions):
    """The defaults are the library's: a grid of `points_per_side` squared points; of the three masks of each those are
    kept that the model gives at least `pred_iou_threshold` and whose stability is at least `stability_threshold`; of
    two whose boxes' IoU is over `nms_threshold` the better."""

    points_per_side: int = Field(32, ge=1, le=128)
    pred_iou_threshold: float = Field(0.88, ge=0, le=1)
    stability_threshold: float = Field(0.95, ge=0, le=1)
    nms_threshold: float = Field(0.7, ge=0, le=1)


def propose(segmenter: Segmenter, encoded: Encoded, options: ProposalOptions) -> Masks:
    """Masks of everything in the image, none of them empty, best predicted IoU first.

    Automatic mask generation as in Segment Anything, appendix B, and segment_anything/automatic_mask_generator.py,
    without crops. Only masks that pass are kept, as RLE, so memory does not grow with the grid.
    """
    cells, boxes, scores, stability = [], [], [], []
    points = _grid(options.points_per_side) * np.array([encoded.width, encoded.height], dtype=np.float32)
    at_once = int(np.clip(_MASK_BYTES // (3 * encoded.height * encoded.width), 1, _POINTS))
    for start in range(0, len(points), at_once):
        found = segmenter.segment_points(encoded, points[start : start + at_once])
        good = (found.scores >= options.pred_iou_threshold) & (found.stability >= options.stability_threshold)
        for k in np.flatnonzero(good & found.masks.any(axis=(1, 2))).tolist():
            cells.append(encode_rle(found.masks[k]))
            # Of the outermost pixels' indices, without their width, as the library has it.
            boxes.append(masks_to_boxes(torch.from_numpy(found.masks[k : k + 1]))[0])
            scores.append(found.scores[k])
            stability.append(found.stability[k])
    kept = _suppress(boxes, scores, stability, options.nms_threshold)
    masks = np.zeros((len(kept), encoded.height, encoded.width), dtype=bool)
    for mask, k in zip(masks, kept, strict=True):
        mask[:] = decode_rle(cells[k])
    return Masks(
        masks, np.array([scores[k] for k in kept], np.float32), np.array([stability[k] for k in kept], np.float32)
    )


def _grid(per_side: int) -> np.ndarray:
    """float32 (per_side ** 2, 2): x, y of the centres of equal cells, as shares of width and height; rows first."""
    centres = (np.arange(per_side, dtype=np.float32) + 0.5) / per_side
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def _suppress(
    boxes: list[torch.Tensor], scores: list[np.float32], stability: list[np.float32], threshold: float
) -> list[int]:
    """Indices of the boxes that survive non-maximum suppression, best score first, among equals the stablest."""
    if not boxes:
        return []
    order = np.lexsort((-np.array(stability), -np.array(scores)))
    ordered = torch.stack([boxes[k] for k in order])
    descending = torch.arange(len(order), 0, -1, dtype=torch.float32)
    return [int(order[k]) for k in nms(ordered, descending, threshold)]
