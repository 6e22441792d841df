"""What a segmenter is: the second half of a grounding expert, from boxes or points to masks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BeforeValidator, SerializeAsAny

from experts.base import Placement
from experts.model import MicroBatches, ModelOptions, pick_device
from experts.registry import missing, segmenter_class
from pipeline.errors import InputError


class SegmenterOptions(ModelOptions):
    """Options of a segmenter inside an expert's; `name` is its module in `experts/`."""

    name: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image as its encoder left it: `features` are the segmenter's own, `height` and `width` the image's."""

    features: Any
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Masks:
    """n masks at the image's size. `masks` bool (n, height, width); `scores` float32 (n,), the model's prediction of
    each one's IoU with the object, clipped to [0, 1]; `stability` float32 (n,) in [0, 1], IoU of the masks that the
    logits give one below and one above the threshold."""

    masks: np.ndarray
    scores: np.ndarray
    stability: np.ndarray

    @classmethod
    def of_logits(cls, logits: torch.Tensor, scores: torch.Tensor) -> Self:
        """From logits (n, height, width) at the image's size and scores (n,); thresholds 0 and, for the stability,
        ±1, as in Segment Anything, appendix B."""
        inner, outer = ((logits > threshold).sum((1, 2)) for threshold in (1.0, -1.0))
        stability = inner / outer.clamp(min=1)
        return cls((logits > 0).cpu().numpy(), scores.clamp(0, 1).cpu().numpy(), stability.cpu().numpy())

    @classmethod
    def joined(cls, found: Sequence[Self], encoded: Encoded) -> Self:
        """All masks of several answers for one image, in order."""
        none = np.zeros(0, dtype=np.float32)
        no_mask = np.zeros((0, encoded.height, encoded.width), dtype=bool)
        return cls(
            np.concatenate([no_mask, *(masks.masks for masks in found)]),
            np.concatenate([none, *(masks.scores for masks in found)]),
            np.concatenate([none, *(masks.stability for masks in found)]),
        )


class Segmenter(ABC):
    """Base of all segmenters. A subclass is one file `experts/<name>.py`. Constructed where an expert is."""

    summary: ClassVar[str]
    """One line for `ivm-mix experts`."""
    needs: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[SegmenterOptions]] = SegmenterOptions

    def __init__(self, options: SegmenterOptions, placement: Placement) -> None:
        self.options = options
        self.torch_device = pick_device(placement.device)
        self.batches = MicroBatches(placement.batch)

    @abstractmethod
    def encode(self, images: Sequence[np.ndarray]) -> list[Encoded]:
        """One encoder pass per image, in batches; images are uint8 RGB (height, width, 3) of any sizes."""

    @abstractmethod
    def segment_boxes(self, encoded: Encoded, boxes: np.ndarray) -> Masks:
        """One mask per box. `boxes` float32 (n, 4): x1, y1, x2, y2 in pixels."""

    @abstractmethod
    def segment_points(self, encoded: Encoded, points: np.ndarray) -> Masks:
        """Three masks per point (part, object, whole), those of a point one after another.

        `points` float32 (n, 2): x, y in pixels; each a prompt of its own.
        """


def _segmenter_options(value: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("give a segmenter as {name: sam, checkpoint: …}")
    try:
        found = segmenter_class(value["name"])
    except InputError as error:
        raise ValueError(str(error)) from error
    if absent := missing(found):
        raise ValueError(f"segmenter '{value['name']}' needs {', '.join(absent)}")
    return found.Options.model_validate(value)


AnySegmenterOptions = Annotated[SerializeAsAny[SegmenterOptions], BeforeValidator(_segmenter_options)]
"""Field type for the options of whichever segmenter the profile names."""


def load_segmenter(options: SegmenterOptions, placement: Placement) -> Segmenter:
    """The segmenter that the options name, its weights loaded."""
    return segmenter_class(options.name)(options, placement)
