"""What the experts that score regions share: SAM's proposals over an image, each compared with each phrase."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from experts.base import Candidate, Placement, Scene, per_request, unique_texts
from experts.model import ModelOptions, TorchExpert, check_model_type, load_pretrained, load_processor
from experts.proposals import ProposalOptions, propose
from experts.segmenter import AnySegmenterOptions, Encoded, load_segmenter

Prepared = TypeVar("Prepared")

_PROMPT = "a photo of {}"
"""As ReCLIP and AlphaCLIP's evaluation ask for a referring expression (AlphaCLIP, eval/rec_zs_test/executor.py)."""
_RIVALS = ("object", "things", "stuff", "texture")
"""LERF's canonical phrases (Kerr et al., ICCV 2023, "Querying LERF"), which fit any region a little."""


class RegionOptions(ModelOptions):
    """Options of every region-scoring expert. Of the regions that score at least `threshold` for a phrase the best
    `top` are kept. CLIP gives 0.5 where a phrase fits as well as the best generic word; SigLIP's probabilities are
    strict, and 0.01 may already be a hit."""

    segmenter: AnySegmenterOptions
    proposals: ProposalOptions = ProposalOptions()
    top: int = Field(5, ge=1, le=100)
    threshold: float = Field(0.1, ge=0, le=1)


class RegionExpert(TorchExpert, Generic[Prepared]):
    """SAM proposes regions, a model with an image and a text encoder tells how well each phrase describes each one.

    A subclass says how a region is shown to the image encoder. A phrase's first candidate carries the soft map of
    that phrase as its heatmap: at each pixel the highest score among all regions that cover it, those under the
    threshold too, 0 where there is none. It is not stretched per image: what is not there is dark everywhere.
    """

    families: ClassVar[Mapping[str, Any]]
    """The transformers model by the `model_type` that a checkpoint's config.json names."""
    options: RegionOptions

    def __init__(self, options: RegionOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        kind = load_processor(AutoConfig, options).model_type
        check_model_type(options, kind, self.families)
        self.tokenizer = load_processor(AutoTokenizer, options)
        self.image_processor = load_processor(AutoImageProcessor, options)
        self.model = load_pretrained(self.families[kind], options, self.torch_device)
        # SigLIP's sigmoid needs none: its bias says how well an unrelated text fits.
        self.rivals = () if hasattr(self.model, "logit_bias") else _RIVALS
        self.segmenter = load_segmenter(options.segmenter, self.placement)

    @abstractmethod
    def prepare(self, image: np.ndarray) -> Prepared:
        """What is done once per image, uint8 RGB (height, width, 3), before its regions are encoded."""

    @abstractmethod
    def encode_regions(self, regions: list[tuple[Prepared, np.ndarray]]) -> torch.Tensor:
        """Image embeddings (n, dimensions), any length, of n regions: a prepared image and a mask of its size each."""

    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        phrases = [unique_texts(scene.requests, "phrases") for scene in scenes]
        asked = [k for k in range(len(scenes)) if phrases[k]]
        texts = self._encode([phrase for k in asked for phrase in phrases[k]])
        encoded = self.segmenter.encode([scenes[k].image for k in asked]) if asked else []
        found: list[dict[str, list[Candidate]]] = [{phrase: [] for phrase in of_scene} for of_scene in phrases]
        # One image after another: its regions fill the batches, and those of many images would fill the memory.
        for k, image in zip(asked, encoded, strict=True):
            masks = self._regions(image)
            if masks:
                embeddings = self._encode_all_regions(scenes[k].image, masks)
                scores = self._scores(embeddings, texts, phrases[k])
                found[k] = {phrase: self._candidates(masks, scores[:, i], phrase) for i, phrase in enumerate(found[k])}
        return [per_request(scene.requests, "phrases", found[k]) for k, scene in enumerate(scenes)]

    def _regions(self, encoded: Encoded) -> list[np.ndarray]:
        """Regions of an image, bool (height, width); one that is the whole image is none."""
        return [mask for mask in propose(self.segmenter, encoded, self.options.proposals).masks if not mask.all()]

    def _encode_all_regions(self, image: np.ndarray, masks: Sequence[np.ndarray]) -> torch.Tensor:
        """The embeddings of an image's regions, float32 (n, dimensions) of length 1."""
        prepared = self.prepare(image)
        regions = [(prepared, mask) for mask in masks]
        return torch.stack(self.batches.map(lambda batch: _unit(self.encode_regions(batch)), regions))

    def _encode(self, phrases: Sequence[str]) -> dict[str, torch.Tensor]:
        """Text embeddings, float32 (dimensions,) of length 1, of the different phrases and of the generic ones."""
        texts = list(dict.fromkeys([*phrases, *self.rivals])) if phrases else []
        return dict(zip(texts, self.batches.map(self._encode_texts, texts), strict=True))

    def _encode_texts(self, texts: list[str]) -> list[torch.Tensor]:
        # SigLIP is trained on texts padded to full length, and on lower case; CLIP minds neither.
        inputs = self.tokenizer(
            [_PROMPT.format(text.lower()) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return _unit(self.model.get_text_features(**inputs.to(self.torch_device)).pooler_output)

    def _scores(self, regions: torch.Tensor, texts: Mapping[str, torch.Tensor], phrases: Sequence[str]) -> np.ndarray:
        scale = self.model.logit_scale.float().exp()
        asked = scale * regions @ torch.stack([texts[phrase] for phrase in phrases]).T
        if self.rivals:
            generic = scale * regions @ torch.stack([texts[rival] for rival in self.rivals]).T
            return torch.sigmoid(asked - generic.amax(1, keepdim=True)).cpu().numpy()
        return torch.sigmoid(asked + self.model.logit_bias.float()).cpu().numpy()

    def _candidates(self, masks: Sequence[np.ndarray], scores: np.ndarray, phrase: str) -> list[Candidate]:
        best = [k for k in np.argsort(-scores, kind="stable") if scores[k] >= self.options.threshold]
        soft = _soft_map(masks, scores) if best else None
        return [
            Candidate(masks[k], float(scores[k]), phrase, soft if rank == 0 else None)
            for rank, k in enumerate(best[: self.options.top])
        ]


def _soft_map(masks: Sequence[np.ndarray], scores: np.ndarray) -> np.ndarray:
    soft = np.zeros(masks[0].shape, dtype=np.float32)
    for k in np.argsort(scores, kind="stable"):
        np.putmask(soft, masks[k], scores[k])
    return soft


def _unit(embeddings: torch.Tensor) -> list[torch.Tensor]:
    return list(normalize(embeddings.float(), dim=-1))


def to_square(image: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """An array (height, width, channels) with bars of a colour on both sides or above and below that make it square."""
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side, image.shape[2]), colour, dtype=image.dtype)
    square[top : top + height, left : left + width] = image
    return square
