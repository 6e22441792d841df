"""Expert `region_alphaclip`: SAM's regions, each scored against each phrase by AlphaCLIP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel

from experts.alphaclip import alpha_channel, use_alpha_tower
from experts.base import ExpertOptions, Placement
from experts.checkpoints import check_files, expanded, weights_id
from experts.region_scoring import RegionExpert, RegionOptions, to_square


class AlphaClipOptions(RegionOptions):
    """`checkpoint` is the CLIP, by transformers, that the AlphaCLIP was trained from; `alpha_checkpoint` the local
    .pth of AlphaCLIP's model zoo, which holds the image encoder only."""

    whereabouts: ClassVar[frozenset[str]] = RegionOptions.whereabouts | {"alpha_checkpoint"}

    alpha_checkpoint: str

    @property
    def alpha_path(self) -> Path:
        return expanded(self.alpha_checkpoint)

    def pinned(self) -> Self:
        check_files(self.alpha_path)
        return super().pinned()


class RegionAlphaClip(RegionExpert[torch.Tensor]):
    """The paper's region scoring: AlphaCLIP sees the whole image each time, with the region's mask in its fourth
    channel, so that context counts. Scored as by `region_clip`: the authors' script stretches the cosines of an
    image to 0 and 1, which makes a sure hit of the best region even where the phrase names nothing in sight.

    The image is padded to a square with black, as in AlphaCLIP's training (train/dataset/alpha_grit.py); the
    authors' inference example crops its middle instead but squeezes the mask, which puts the two out of register.
    """

    summary = "SAM regions scored against the phrase by AlphaCLIP, with a soft map"
    limits = "small regions are lost at 336 px; English; weights for research only; one pass per region"
    needs = ("torch", "transformers")
    Options = AlphaClipOptions
    families: ClassVar[Mapping[str, Any]] = {"clip": CLIPModel}
    options: AlphaClipOptions

    def __init__(self, options: AlphaClipOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        use_alpha_tower(self.model, options.alpha_path)

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        assert isinstance(options, AlphaClipOptions)
        return f"{super().version(options)} + {weights_id(str(options.alpha_path), '')}"

    def prepare(self, image: np.ndarray) -> torch.Tensor:
        square = Image.fromarray(to_square(image, (0, 0, 0)))
        pixels: torch.Tensor = self.image_processor(images=square, return_tensors="pt").pixel_values[0]
        return pixels

    def encode_regions(self, regions: list[tuple[torch.Tensor, np.ndarray]]) -> torch.Tensor:
        side = self.model.config.vision_config.image_size
        alpha = [
            alpha_channel(torch.from_numpy(to_square(mask[..., None], (False,))).permute(2, 0, 1)[None], side)
            for _, mask in regions
        ]
        pixels = torch.stack([picture for picture, _ in regions])
        inputs = torch.cat([pixels, torch.cat(alpha)], 1).to(self.torch_device, self.options.torch_dtype)
        embeddings: torch.Tensor = self.model.get_image_features(inputs).pooler_output
        return embeddings
