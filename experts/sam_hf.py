"""Segmenter `sam_hf`: SAM, SAM-HQ and SAM 2 by transformers, from their hub checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    PreTrainedConfig,
    Sam2ImageProcessor,
    Sam2Model,
    SamHQModel,
    SamImageProcessor,
    SamModel,
)

from experts.base import Placement
from experts.checkpoints import UNREADABLE, local_path
from experts.model import MicroBatches, check_model_type, load_pretrained, load_processor
from experts.segmenter import Encoded, Masks, Segmenter, SegmenterOptions
from pipeline.errors import InputError

_FAMILIES = {
    "sam": (SamModel, SamImageProcessor),
    "sam_hq": (SamHQModel, SamImageProcessor),
    "sam2": (Sam2Model, Sam2ImageProcessor),
    # What the config.json of facebook/sam2-hiera-* and facebook/sam2.1-hiera-* says; one file serves images and video.
    "sam2_video": (Sam2Model, Sam2ImageProcessor),
}
_PROMPTS_PER_IMAGE = 16
"""Prompts decoded in one pass for each image that the encoder takes: the decoder is two layers on 64 x 64 tokens."""


@dataclass(frozen=True, eq=False)
class _Features:
    """`embeddings` float32, the model's arguments in place of pixels, of one image; `sizes` what the processor is told
    to bring masks back to the image's size; `scale` float32 (2,), x and y from the image's pixels to the input's."""

    embeddings: dict[str, Any]
    sizes: dict[str, list[tuple[int, int]]]
    scale: np.ndarray


class SamHf(Segmenter):
    """SAM (Kirillov et al., ICCV 2023), SAM-HQ (Ke et al., NeurIPS 2023) or SAM 2 (Ravi et al., 2024), whichever the
    checkpoint's config.json names. A box gives one mask, a point three; SAM-HQ's three are sorted by predicted IoU.

    `dtype` is the image encoder's; the far smaller rest runs in float32, since bfloat16 would place a prompt only to
    1/256 of the image.
    """

    summary = "SAM, SAM-HQ or SAM 2 by transformers, told by the checkpoint's config.json"
    needs = ("torch", "torchvision", "transformers")

    def __init__(self, options: SegmenterOptions, placement: Placement) -> None:
        super().__init__(options, placement)
        model_class, processor_class = _family(options)
        self.processor = load_processor(processor_class, options)
        self.model = load_pretrained(model_class, options.model_copy(update={"dtype": "float32"}), self.torch_device)
        self.model.vision_encoder.to(options.torch_dtype)
        if model_class is Sam2Model:
            # They belong to the encoder: `get_image_embeddings` applies them to its feature maps.
            self.model.mask_decoder.conv_s0.to(options.torch_dtype)
            self.model.mask_decoder.conv_s1.to(options.torch_dtype)
        if model_class is SamHQModel:
            self.model.mask_decoder.transformer.register_forward_hook(_hand_over_image_tokens, with_kwargs=True)
        self.prompts = MicroBatches(_PROMPTS_PER_IMAGE * placement.batch)

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoded]:
        def forward(batch: list[np.ndarray]) -> list[Encoded]:
            inputs = self.processor(
                images=[self._widened(image) for image in batch], input_data_format="channels_last", return_tensors="pt"
            )
            embeddings = self._embeddings(inputs["pixel_values"].to(self.torch_device, self.options.torch_dtype))
            encoded = []
            for k, image in enumerate(batch):
                # Only SAM and SAM-HQ keep the aspect ratio and pad; SAM 2 fills its square.
                names = [name for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
                sizes = {name: [tuple(inputs[name][k].tolist())] for name in names}
                resized = sizes.get("reshaped_input_sizes", [inputs["pixel_values"].shape[-2:]])[0]
                scale = np.divide(resized, sizes["original_sizes"][0])[::-1].astype(np.float32)
                encoded.append(Encoded(_Features(_of_image(embeddings, k), sizes, scale), *image.shape[:2]))
            return encoded

        return self.batches.map(forward, images)

    def segment_boxes(self, encoded: Encoded, boxes: np.ndarray) -> Masks:
        return self._segment(encoded, boxes.reshape(-1, 2, 2))

    def segment_points(self, encoded: Encoded, points: np.ndarray) -> Masks:
        return self._segment(encoded, points.reshape(-1, 1, 2))

    def _widened(self, image: np.ndarray) -> np.ndarray:
        """The image, or one so thin that the processor would resize it to nothing with its edge repeated."""
        if not isinstance(self.processor, SamImageProcessor):
            return image
        height, width = image.shape[:2]
        least = -(-max(height, width) // (2 * self.processor.size["longest_edge"]))
        return np.pad(image, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)), mode="edge")

    def _embeddings(self, pixels: torch.Tensor) -> dict[str, Any]:
        found = self.model.get_image_embeddings(pixels)
        if isinstance(self.model, SamHQModel):
            # Of the layers it is given the decoder reads the first.
            return {"image_embeddings": found[0], "intermediate_embeddings": [found[1][0]]}
        return {"image_embeddings": found}

    def _segment(self, encoded: Encoded, prompts: np.ndarray) -> Masks:
        """Masks of prompts (n, 2, 2), a box's corners, or (n, 1, 2), a point, in pixels of the image."""
        features: _Features = encoded.features
        scaled = torch.from_numpy(prompts.astype(np.float32) * features.scale)

        def forward(batch: list[torch.Tensor]) -> list[Masks]:
            corners = torch.stack(batch)[None].to(self.torch_device)
            is_box = corners.shape[2] == 2
            prompt = {"input_boxes": corners.flatten(2)} if is_box else {"input_points": corners}
            answer = self.model(**features.embeddings, **prompt, multimask_output=not is_box)
            return [
                self._masks(encoded, logits, scores)
                for logits, scores in zip(answer.pred_masks[0], answer.iou_scores[0], strict=True)
            ]

        return Masks.joined(self.prompts.map(forward, list(scaled)), encoded)

    def _masks(self, encoded: Encoded, logits: torch.Tensor, scores: torch.Tensor) -> Masks:
        """Masks of one prompt from logits (k, grid, grid): all prompts' at the image's size at once would not fit."""
        [full] = self.processor.post_process_masks([logits[None]], **encoded.features.sizes, binarize=False)
        full = full[0, :, : encoded.height, : encoded.width]
        return Masks.of_logits(full, scores)


def _family(options: SegmenterOptions) -> tuple[Any, Any]:
    """Model and image processor class of a checkpoint.

    Raises:
        InputError: its config.json is missing or names another model.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(
            local_path(options.checkpoint) or options.checkpoint, revision=options.revision
        )
    except UNREADABLE as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(f"checkpoint {options.checkpoint}: its config.json cannot be read: {first[0]}") from error
    check_model_type(options, config.get("model_type"), _FAMILIES)
    return _FAMILIES[config["model_type"]]


def _of_image(embeddings: Any, k: int) -> Any:
    """The k-th image's part of what the model's `get_image_embeddings` gives for a batch, in float32."""
    if isinstance(embeddings, dict):
        return {name: _of_image(part, k) for name, part in embeddings.items()}
    if isinstance(embeddings, list):
        return [_of_image(part, k) for part in embeddings]
    return embeddings[k : k + 1].float()


def _hand_over_image_tokens(
    transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[torch.Tensor, ...]
) -> None:
    """Makes transformers' SAM-HQ decoder upscale the image tokens that left its two-way transformer.

    `SamHQMaskDecoder.forward` drops them and upscales those that entered, with height and width swapped. The authors'
    decoder (SysCV/sam-hq, segment_anything/modeling/mask_decoder_hq.py) goes on with the former, as SAM does, so they
    are written over the latter, swapped likewise. Harmless once the library does so itself.
    """
    entered, left = kwargs["image_embeddings"], output[1]
    entered.copy_(left.flatten(0, 1).transpose(1, 2).reshape(entered.shape).transpose(2, 3))
