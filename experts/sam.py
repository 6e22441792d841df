"""Segmenter `sam`: Segment Anything by its authors' package, from their .pth checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import field_validator
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from experts.base import Placement
from experts.checkpoints import expanded, load_pth, load_weights
from experts.model import MicroBatches
from experts.segmenter import Encoded, Masks, Segmenter, SegmenterOptions
from pipeline.errors import InputError

_PROMPTS_PER_IMAGE = 16
"""Prompts decoded in one pass for each image that the encoder takes: the decoder is two layers on 64 x 64 tokens."""
_HEADS = 8
"""Attention heads of the mask decoder in all published checkpoints; no tensor's shape tells them."""


class SamOptions(SegmenterOptions):
    """`checkpoint` is a .pth file as segment-anything publishes them; `dtype` is the image encoder's, the far smaller
    rest runs in float32, since bfloat16 would place a prompt only to 1/256 of the image."""

    @field_validator("checkpoint")
    @classmethod
    def _is_pth(cls, checkpoint: str) -> str:
        if Path(checkpoint).suffix not in (".pth", ".pt"):
            raise ValueError("segmenter sam takes a local .pth file; for a hub id or folder use segmenter sam_hf")
        return checkpoint


@dataclass(frozen=True, eq=False)
class _Features:
    """`embedding` float32 (1, channels, grid, grid); `height` and `width` of the image inside the padded input."""

    embedding: torch.Tensor
    height: int
    width: int


class SegmentAnything(Segmenter):
    """Segment Anything (Kirillov et al., ICCV 2023). ViT-H, L and B, and any other size of the same architecture, which
    is read off the checkpoint. A box gives the single mask, a point the three of the ambiguity-aware output."""

    summary = "Segment Anything by its authors' package, from .pth: ViT-H, ViT-L, ViT-B"
    needs = ("torch", "segment_anything")
    Options = SamOptions

    def __init__(self, options: SegmenterOptions, placement: Placement) -> None:
        super().__init__(options, placement)
        path = expanded(options.checkpoint)
        self.model = build_sam(load_pth(path), path).to(self.torch_device)
        self.model.image_encoder.to(options.torch_dtype)
        self.prompts = MicroBatches(_PROMPTS_PER_IMAGE * placement.batch)

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoded]:
        def forward(batch: list[np.ndarray]) -> list[Encoded]:
            resized = [self._resized(image) for image in batch]
            padded = torch.stack([self.model.preprocess(pixels) for pixels in resized])
            embeddings = self.model.image_encoder(padded.to(self.options.torch_dtype)).float()
            return [
                Encoded(_Features(embedding[None], *pixels.shape[1:]), *image.shape[:2])
                for embedding, pixels, image in zip(embeddings, resized, batch, strict=True)
            ]

        return self.batches.map(forward, images)

    def segment_boxes(self, encoded: Encoded, boxes: np.ndarray) -> Masks:
        return self._segment(encoded, boxes.reshape(-1, 2, 2))

    def segment_points(self, encoded: Encoded, points: np.ndarray) -> Masks:
        return self._segment(encoded, points.reshape(-1, 1, 2))

    def _resized(self, image: np.ndarray) -> torch.Tensor:
        """float32 (3, height, width) in [0, 255], the long side that of the model's input, resized by PIL as in
        segment_anything/utils/transforms.py."""
        side = self.model.image_encoder.img_size
        height, width = image.shape[:2]
        scale = side / max(height, width)
        size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        pixels = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return torch.from_numpy(pixels).permute(2, 0, 1).to(self.torch_device, torch.float32)

    def _segment(self, encoded: Encoded, prompts: np.ndarray) -> Masks:
        """Masks of prompts (n, 2, 2), a box's corners, or (n, 1, 2), a point, in pixels of the image."""
        features: _Features = encoded.features
        scale = np.array([features.width / encoded.width, features.height / encoded.height], dtype=np.float32)
        scaled = torch.from_numpy(prompts.astype(np.float32) * scale)
        position = self.model.prompt_encoder.get_dense_pe()

        def forward(batch: list[torch.Tensor]) -> list[Masks]:
            corners = torch.stack(batch).to(self.torch_device)
            is_box = corners.shape[1] == 2
            labels = torch.ones(corners.shape[:2], dtype=torch.int, device=self.torch_device)
            sparse, dense = self.model.prompt_encoder(
                points=None if is_box else (corners, labels), boxes=corners.flatten(1) if is_box else None, masks=None
            )
            logits, scores = self.model.mask_decoder(
                image_embeddings=features.embedding,
                image_pe=position,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=not is_box,
            )
            return [self._masks(encoded, *of_prompt) for of_prompt in zip(logits, scores, strict=True)]

        return Masks.joined(self.prompts.map(forward, list(scaled)), encoded)

    def _masks(self, encoded: Encoded, logits: torch.Tensor, scores: torch.Tensor) -> Masks:
        """Masks of one prompt from logits (k, grid, grid): all prompts' at the image's size at once would not fit."""
        features: _Features = encoded.features
        full = self.model.postprocess_masks(
            logits[None], (features.height, features.width), (encoded.height, encoded.width)
        )[0]
        return Masks.of_logits(full, scores)


def build_sam(weights: dict[str, Any], path: Path) -> Sam:
    """The model of a state dict, in evaluation mode on the CPU, of the size that its tensors' shapes tell.

    Raises:
        InputError: it is of another model; names `path`, where the weights are from.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    try:
        # Memory only: random numbers for weights that are loaded next would take seconds.
        with torch.device("meta"):
            parts = _image_encoder(shapes), _prompt_encoder(shapes), _mask_decoder(shapes)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"checkpoint {path} is not of Segment Anything: it lacks {error}") from error
    model = Sam(*(part.to_empty(device="cpu") for part in parts))
    load_weights(model, weights, path)
    return model.eval().requires_grad_(False)


def _image_encoder(shapes: dict[str, tuple[int, ...]]) -> ImageEncoderViT:
    width, _, _, patch = shapes["image_encoder.patch_embed.proj.weight"]
    grid = shapes["image_encoder.pos_embed"][1]
    depth = _count(shapes, "image_encoder.blocks.{}.attn.rel_pos_h")
    # A block has 2 s - 1 relative positions for windows of s x s tokens; those of a global block span the grid.
    positions = [shapes[f"image_encoder.blocks.{k}.attn.rel_pos_h"] for k in range(depth)]
    spans = [(count + 1) // 2 for count, _ in positions]
    return ImageEncoderViT(
        depth=depth,
        embed_dim=width,
        img_size=grid * patch,
        mlp_ratio=shapes["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=width // positions[0][1],
        patch_size=patch,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=[k for k, span in enumerate(spans) if span == grid],
        window_size=min(spans),
        out_chans=shapes["image_encoder.neck.0.weight"][0],
    )


def _prompt_encoder(shapes: dict[str, tuple[int, ...]]) -> PromptEncoder:
    grid, patch = shapes["image_encoder.pos_embed"][1], shapes["image_encoder.patch_embed.proj.weight"][-1]
    return PromptEncoder(
        embed_dim=shapes["prompt_encoder.no_mask_embed.weight"][1],
        image_embedding_size=(grid, grid),
        input_image_size=(grid * patch, grid * patch),
        mask_in_chans=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
    )


def _mask_decoder(shapes: dict[str, tuple[int, ...]]) -> MaskDecoder:
    tokens, width = shapes["mask_decoder.mask_tokens.weight"]
    transformer = TwoWayTransformer(
        depth=_count(shapes, "mask_decoder.transformer.layers.{}.norm1.weight"),
        embedding_dim=width,
        mlp_dim=shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        num_heads=_HEADS,
    )
    return MaskDecoder(
        num_multimask_outputs=tokens - 1,
        transformer=transformer,
        transformer_dim=width,
        iou_head_depth=_count(shapes, "mask_decoder.iou_prediction_head.layers.{}.weight"),
        iou_head_hidden_dim=shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    )


def _count(shapes: dict[str, tuple[int, ...]], name: str) -> int:
    """How many of the tensors `name` with 0, 1, … in it there are."""
    count = 0
    while name.format(count) in shapes:
        count += 1
    return count
