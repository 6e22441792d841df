"""Expert `region_clip`: SAM's regions, each scored against each phrase by CLIP or SigLIP."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, Siglip2Model, SiglipModel

from experts.region_scoring import RegionExpert, RegionOptions, to_square

_MARGIN = 0.1
"""Context around a mask's box, as a share of the box's longer side."""
_SIDE = 448
"""Pixels of a view's longer side at most; the published models look at 224 to 512."""
_BLUR = 0.1
"""Standard deviation of the blur around the region, as a share of the view's longer side."""


class RegionClip(RegionExpert[np.ndarray]):
    """Region scoring with whatever model the checkpoint is of: CLIP, SigLIP, or SigLIP 2 of either kind (those of
    fixed resolution call themselves siglip in their config.json).

    A region is shown as the crop of its box, blurred outside the mask: the crop of ReCLIP (Subramanian et al., ACL
    2022) with the Blur Reverse Mask of Fine-Grained Visual Prompting (Yang et al., NeurIPS 2023), the mark
    they settle on for SAM's masks; so two regions with one box still look different. Padded to a square, since CLIP's
    preprocessing cuts the ends off anything longer.

    SigLIP's score is the probability its sigmoid loss is trained for. CLIP knows only which text fits better: its
    score is LERF's relevancy, the softmax against the generic text that fits the region best, at the model's own
    temperature. Neither depends on other regions or phrases.
    """

    summary = "SAM regions scored against the phrase by CLIP or SigLIP, with a soft map"
    limits = "names what a region is, not where: blind to relations and counts; one pass per region, so slow on a CPU"
    needs = ("torch", "transformers")
    Options = RegionOptions
    families: ClassVar[Mapping[str, Any]] = {"clip": CLIPModel, "siglip": SiglipModel, "siglip2": Siglip2Model}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def encode_regions(self, regions: list[tuple[np.ndarray, np.ndarray]]) -> torch.Tensor:
        grey = [round(255 * mean) for mean in self.image_processor.image_mean]
        views = [Image.fromarray(region_view(image, mask, grey)) for image, mask in regions]
        inputs = self.image_processor(images=views, return_tensors="pt")
        inputs = inputs.to(self.torch_device, self.options.torch_dtype)
        embeddings: torch.Tensor = self.model.get_image_features(**inputs).pooler_output
        return embeddings


def region_view(image: np.ndarray, mask: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """The region as a picture of its own.

    Args:
        image: uint8 RGB (height, width, 3).
        mask: bool (height, width), not empty.
        colour: RGB of the padding.

    Returns:
        uint8 RGB (side, side, 3) with side at most 448.
    """
    crop = _window(mask)
    view: np.ndarray = image[crop]
    inside: np.ndarray = mask[crop].astype(np.uint8)
    scale = _SIDE / max(inside.shape)
    if scale < 1:
        size = tuple(max(1, round(scale * length)) for length in reversed(inside.shape))
        view = cv2.resize(view, size, interpolation=cv2.INTER_AREA)
        inside = cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST)
    blurred = cv2.GaussianBlur(view, (0, 0), max(1.0, _BLUR * max(inside.shape)))
    return to_square(np.where(inside[..., None] > 0, view, blurred), colour)


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the mask's box with its margin, inside the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    margin = round(_MARGIN * max(bottom - top, right - left))
    return slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin)
