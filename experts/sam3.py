"""Expert `sam3`: every instance of what a short noun phrase names, by SAM 3."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from transformers import Sam3Model, Sam3Processor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.sam3.modeling_sam3 import Sam3ImageSegmentationOutput, Sam3VisionEncoderOutput

from experts.base import Candidate, Placement, Scene, per_request, unique_texts
from experts.model import ModelOptions, TorchExpert, load_pretrained, load_processor


class Sam3Options(ModelOptions):
    """Of the instances that score more than `threshold` for a phrase the best `top` are kept; `mask_threshold` is the
    probability from which a pixel belongs to the mask."""

    top: int = Field(10, ge=1, le=50)
    threshold: float = Field(0.3, ge=0, le=1)
    mask_threshold: float = Field(0.5, gt=0, lt=1)


class _Image(NamedTuple):
    """Feature maps (channels, height, width), finest first, their position encodings, and the image's size in px."""

    maps: tuple[torch.Tensor, ...]
    positions: tuple[torch.Tensor, ...]
    height: int
    width: int


class _Text(NamedTuple):
    """Features (tokens, channels) of a phrase, and int (tokens,) 1 where they are not padding."""

    features: torch.Tensor
    mask: torch.Tensor


class Sam3(TorchExpert):
    """SAM 3 (Carion et al., 2025), promptable concept segmentation: one mask per instance.

    The score is the model's, as its library reports it: the probability that the concept is in the image times that
    the query is an instance of it. A phrase is cut to what the text encoder takes, 32 tokens for the published one.
    """

    summary = "every instance of a short noun phrase, by SAM 3"
    limits = "short noun phrases, without relations to other things; licence and gated weights of Meta's own"
    needs = ("torch", "transformers")
    Options = Sam3Options
    options: Sam3Options

    def __init__(self, options: Sam3Options, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(Sam3Model, options, self.torch_device)
        self.processor = load_processor(Sam3Processor, options)

    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        phrases = [unique_texts(scene.requests, "phrases") for scene in scenes]
        asked = [k for k in range(len(scenes)) if phrases[k]]
        images = dict(zip(asked, self.batches.map(self._encode, [scenes[k].image for k in asked]), strict=True))
        different = list(dict.fromkeys(phrase for k in asked for phrase in phrases[k]))
        texts = dict(zip(different, self.batches.map(self._encode_texts, different), strict=True))
        pairs = [(k, phrase) for k in asked for phrase in phrases[k]]
        answers = self.batches.map(self._segment, [(images[k], texts[phrase]) for k, phrase in pairs])
        found: list[dict[str, list[Candidate]]] = [{} for _ in scenes]
        for (k, phrase), instances in zip(pairs, answers, strict=True):
            found[k][phrase] = [Candidate(mask, score, phrase, box=box) for mask, score, box in instances]
        return [per_request(scene.requests, "phrases", found[k]) for k, scene in enumerate(scenes)]

    def _encode(self, images: list[np.ndarray]) -> list[_Image]:
        inputs = self.processor.image_processor(images, return_tensors="pt", input_data_format="channels_last")
        encoded = self.model.get_vision_features(inputs["pixel_values"].to(self.torch_device, self.model.dtype))
        rows = zip(
            zip(*encoded.fpn_hidden_states, strict=True), zip(*encoded.fpn_position_encoding, strict=True), strict=True
        )
        return [_Image(*row, *image.shape[:2]) for row, image in zip(rows, images, strict=True)]

    def _encode_texts(self, phrases: list[str]) -> list[_Text]:
        inputs = self.processor.tokenizer(
            phrases,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.torch_device)
        features = self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        return [_Text(*row) for row in zip(features, inputs["attention_mask"], strict=True)]

    def _segment(self, pairs: list[tuple[_Image, _Text]]) -> list[list[tuple[np.ndarray, float, list[float]]]]:
        """For each pair the instances that are good enough: mask, score, and box."""
        images, texts = zip(*pairs, strict=True)
        outputs = self.model(
            vision_embeds=Sam3VisionEncoderOutput(
                fpn_hidden_states=_stacked([image.maps for image in images]),
                fpn_position_encoding=_stacked([image.positions for image in images]),
            ),
            # Not the tensor that the library's documentation asks for: `forward` takes the features out of this.
            text_embeds=BaseModelOutputWithPooling(pooler_output=torch.stack([text.features for text in texts])),
            attention_mask=torch.stack([text.mask for text in texts]),
        )
        return [self._instances(outputs, row, image) for row, image in enumerate(images)]

    def _instances(self, outputs: Any, row: int, image: _Image) -> list[tuple[np.ndarray, float, list[float]]]:
        logits = outputs.pred_logits[row]
        # The library would make masks of image size of all queries over the threshold, 200 at worst.
        best = logits.topk(min(self.options.top, len(logits))).indices
        kept = Sam3ImageSegmentationOutput(
            pred_logits=logits[None, best].float(),
            pred_boxes=outputs.pred_boxes[row, best][None].float(),
            pred_masks=outputs.pred_masks[row, best][None].float(),
            presence_logits=outputs.presence_logits[row][None].float(),
        )
        [answer] = self.processor.post_process_instance_segmentation(
            kept, self.options.threshold, self.options.mask_threshold, [(image.height, image.width)]
        )
        edges = answer["boxes"].new_tensor([image.width, image.height] * 2)
        boxes = torch.minimum(answer["boxes"].clamp(min=0), edges)
        masks = answer["masks"].bool().cpu().numpy()
        return list(zip(masks, answer["scores"].tolist(), boxes.tolist(), strict=True))


def _stacked(images: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """One tensor per level, of one tensor per image and level."""
    return tuple(torch.stack(level) for level in zip(*images, strict=True))
