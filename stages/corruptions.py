"""Masks of human style that are wrong: what keeps the discriminator from learning the pencil instead of the mask."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from pipeline.masks import mask_box, mask_iou

CORRUPTIONS = ("shifted", "eroded", "dilated", "cut", "merged", "target dropped", "elsewhere", "whole image")
_SAME = 0.9
"""IoU with the human mask from which on a corrupted one is no longer wrong."""
_REACH = (0.15, 0.5)
"""By what share of the square root of the area a mask is shifted, eroded or dilated: least and most."""


def corrupted(
    human: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Each of `CORRUPTIONS` that can be done to a human mask, with its result: not empty, and of IoU under 0.9 with it.

    Args:
        human: bool (height, width), not empty.
        others: human masks of the image's other instructions, to merge with.
        rng: chooses how far, where, and with which.
    """
    reach = max(2, round(float(rng.uniform(*_REACH)) * float(np.sqrt(human.sum()))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach | 1, reach | 1))
    solid = human.astype(np.uint8)
    made = {
        "shifted": _shifted(human, reach, rng),
        "eroded": cv2.erode(solid, disc) > 0,
        "dilated": cv2.dilate(solid, disc) > 0,
        "cut": _cut(human, rng),
        "merged": human | others[int(rng.integers(len(others)))] if others else human,
        "target dropped": _dropped(human),
        "elsewhere": np.roll(human, [int(rng.integers(side)) for side in human.shape], axis=(0, 1)),
        "whole image": np.ones_like(human),
    }
    for name in CORRUPTIONS:
        if made[name].any() and mask_iou(made[name], human) < _SAME:
            yield name, made[name]


def _shifted(mask: np.ndarray, reach: int, rng: np.random.Generator) -> np.ndarray:
    angle = float(rng.uniform(0, 2 * np.pi))
    move = np.array([[1, 0, round(2 * reach * np.cos(angle))], [0, 1, round(2 * reach * np.sin(angle))]], np.float32)
    height, width = mask.shape
    return cv2.warpAffine(mask.astype(np.uint8), move, (width, height), flags=cv2.INTER_NEAREST) > 0


def _cut(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Without what lies on one side of a line through its box."""
    x1, y1, x2, y2 = (int(side) for side in mask_box(mask))
    kept = mask.copy()
    share = float(rng.uniform(0.3, 0.7))
    if rng.random() < 0.5:
        kept[:, : round(x1 + share * (x2 - x1))] = False
    else:
        kept[: round(y1 + share * (y2 - y1))] = False
    return kept if rng.random() < 0.5 else mask & ~kept


def _dropped(mask: np.ndarray) -> np.ndarray:
    """Without its largest connected part, if it has several; else unchanged."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return mask & (labels != 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())) if count > 2 else mask
