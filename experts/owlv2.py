"""Expert `owlv2`: OWLv2 and OWL-ViT through transformers."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from experts.base import Placement
from experts.boxes import BoxModelOptions, best_boxes, to_xyxy_px
from experts.detector import Detection, DetectorExpert
from experts.model import check_model_type, load_pretrained, load_processor

_MODEL_TYPES = ("owlv2", "owlvit")
"""`model_type` in the checkpoint's config.json."""


class Owlv2(DetectorExpert):
    """OWLv2 (Minderer, Gritsenko and Houlsby, NeurIPS 2023) and OWL-ViT (Minderer et al., ECCV 2022).

    A box's score is the sigmoid of its logit for the phrase, as in `post_process_grounded_object_detection`. The
    phrase is asked for as it is, without "a photo of a …": the authors' training left phrases of free text
    (Visual Genome) without a template (scenic, projects/owl_vit/preprocessing/label_ops.py), ours bring their own
    articles, and of the 16 tokens a template would take four.
    """

    summary = "boxes for short noun phrases, then masks: OWLv2 or OWL-ViT"
    limits = "phrases are cut at 16 tokens, and relations within them ('left of') count for little"
    needs = ("torch", "torchvision", "transformers")
    Options = BoxModelOptions
    options: BoxModelOptions

    def __init__(self, options: BoxModelOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(AutoModelForZeroShotObjectDetection, options, self.torch_device)
        check_model_type(options, self.model.config.model_type, _MODEL_TYPES)
        processor = load_processor(AutoProcessor, options)
        self.image_processor, self.tokenizer = processor.image_processor, processor.tokenizer

    def detect(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[list[list[Detection]]]:
        different = list(dict.fromkeys(text for asked in texts for text in asked))
        embedded = dict(zip(different, self.batches.map(self._embed, different), strict=True))
        queries = [torch.stack([embedded[text] for text in asked]) for asked in texts]
        answers = self.batches.map(self._ground, list(zip(images, queries, strict=True)))
        found = []
        for image, (boxes, scores) in zip(images, answers, strict=True):
            height, width = image.shape[:2]
            corners = to_xyxy_px(boxes, *self._extent(height, width))
            found.append([best_boxes(corners, of_text, height, width, self.options) for of_text in scores.T])
        return found

    def _embed(self, texts: list[str]) -> list[torch.Tensor]:
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.torch_device)
        return list(self.model.base_model.get_text_features(**tokens).pooler_output)

    def _ground(self, items: list[tuple[np.ndarray, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each image and its texts' embeddings (texts, width): one box per patch (patches, 4), centre and size as
        shares of the input's, and scores (patches, texts)."""
        images = [image for image, _ in items]
        # On the model's device: OWLv2's blur before resizing takes a CPU seconds for a photo of a few megapixels.
        inputs = self.image_processor(
            images, input_data_format="channels_last", return_tensors="pt", device=self.torch_device
        )
        pixels = inputs.pixel_values.to(self.options.torch_dtype)
        feature_map = self.model.image_embedder(pixel_values=pixels)[0]
        features = feature_map.flatten(1, 2)
        boxes = self.model.box_predictor(features, feature_map).float()
        logits = [
            self.model.class_predictor(of_image[None], queries[None])[0][0].float()
            for of_image, (_, queries) in zip(features, items, strict=True)
        ]
        return [(of_image, of_texts.sigmoid()) for of_image, of_texts in zip(boxes, logits, strict=True)]

    def _extent(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of what the model's input shows: OWLv2 pads images to a square, at the bottom or
        right; OWL-ViT squeezes them into one."""
        side = max(height, width)
        return (side, side) if self.model.config.model_type == "owlv2" else (height, width)
