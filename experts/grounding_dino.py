"""Expert `grounding_dino`: Grounding DINO, MM-Grounding-DINO and LLMDet through transformers."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoProcessor

from experts.base import Placement
from experts.boxes import BoxModelOptions, best_boxes, thick_enough, to_xyxy_px
from experts.detector import Detection, DetectorExpert
from experts.model import check_model_type, load_pretrained, load_processor

_MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")
"""`model_type` in the checkpoint's config.json; LLMDet's is MM-Grounding-DINO's."""
FeatureMaps = tuple[torch.Tensor, ...]
"""What the backbone makes of one image: (channels, height, width) of each level."""


class GroundingDino(DetectorExpert):
    """Grounding DINO (Liu et al., ECCV 2024), MM-Grounding-DINO (Zhao et al., 2024) and LLMDet (Fu et al., CVPR 2025).

    A caption is one phrase. A box's score is that of its best token, as in the processor's
    `post_process_grounded_object_detection`: of all tokens, [CLS], [SEP] and the dot included.
    """

    summary = "boxes for short or referring phrases, then masks: Grounding DINO, MM-Grounding-DINO or LLMDet"
    limits = "the best word counts: of 'the cup left of the plate' it may find every cup, and the plate"
    needs = ("torch", "torchvision", "transformers")
    Options = BoxModelOptions
    options: BoxModelOptions

    def __init__(self, options: BoxModelOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(AutoModelForZeroShotObjectDetection, options, self.torch_device)
        check_model_type(options, self.model.config.model_type, _MODEL_TYPES)
        processor = load_processor(GroundingDinoProcessor, options)
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer
        # The model runs its backbone anew for every caption. So it is taken out, to run once per image, and what
        # stands in its place hands its results on.
        encoder = self.model.model.backbone.conv_encoder
        self.backbone, self.encoded = encoder.model, _Encoded()
        encoder.model = self.encoded

    def detect(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[list[list[Detection]]]:
        padded = [thick_enough(image) for image in images]
        pixels = [self._pixels(image) for image in padded]
        # Padded to a common size, as the processor does, images give other results than alone (windows and group
        # norms take the padding in): only those of one size share a batch.
        same_size: dict[torch.Size, list[int]] = {}
        for k, values in enumerate(pixels):
            same_size.setdefault(values.shape, []).append(k)

        found: list[list[list[Detection]]] = [[] for _ in images]
        for size, group in same_size.items():
            encoded = self.batches.map(self._encode, [pixels[k] for k in group])
            owners = [k for k in group for _ in texts[k]]
            pairs = [(maps, text) for k, maps in zip(group, encoded, strict=True) for text in texts[k]]
            answers = self.batches.map(partial(self._ground, size=size), pairs)
            for k, (boxes, scores) in zip(owners, answers, strict=True):
                boxes = to_xyxy_px(boxes.float(), *padded[k].shape[:2])
                height, width = images[k].shape[:2]
                found[k].append(best_boxes(boxes, scores, height, width, self.options))
        return found

    def _pixels(self, image: np.ndarray) -> torch.Tensor:
        inputs = self.image_processor(image, input_data_format="channels_last", return_tensors="pt")
        return inputs.pixel_values[0]

    def _encode(self, pixels: list[torch.Tensor]) -> list[FeatureMaps]:
        batch = torch.stack(pixels).to(self.torch_device, self.options.torch_dtype)
        return list(zip(*self.backbone(batch).feature_maps, strict=True))

    def _ground(
        self, pairs: list[tuple[FeatureMaps, str]], size: torch.Size
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each pair's boxes (queries, 4), centre and size as shares of the input's, and scores (queries,)."""
        self.encoded.feature_maps = [torch.stack(level) for level in zip(*(maps for maps, _ in pairs), strict=True)]
        captions = self.tokenizer(
            [caption(phrase) for _, phrase in pairs],
            padding=True,
            truncation=True,
            max_length=self.model.config.max_text_len,
            return_tensors="pt",
        ).to(self.torch_device)
        # Only the shape of the pixels still counts.
        pixels = torch.zeros(1, device=self.torch_device).expand(len(pairs), *size)
        outputs = self.model(pixel_values=pixels, **captions)
        return list(zip(outputs.pred_boxes, outputs.logits.sigmoid().amax(dim=-1), strict=True))


class _Encoded(torch.nn.Module):
    """Stands where the backbone was: its output is the `feature_maps`, each (batch, channels, height, width), that
    were put here."""

    feature_maps: list[torch.Tensor]

    def forward(self, pixel_values: torch.Tensor, return_dict: bool) -> "_Encoded":
        return self


def caption(phrase: str) -> str:
    """How one phrase is asked for: lower-case, ended by a dot (the model cards' rule)."""
    return phrase.lower().strip(" .") + "."
