"""Expert `lisa`: LISA's masks of what a whole instruction is about."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch.nn.functional import interpolate, pad
from transformers import CLIPImageProcessor, CLIPVisionModel, GenerationConfig, LlamaTokenizer

from experts.base import Candidate, Placement, Scene, per_request, unique_texts
from experts.lisa_model import load_lisa
from experts.model import ModelOptions, TorchExpert, load_pretrained, load_processor
from pipeline.errors import InputError

_OPENING = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. USER:"
)
"""What stands before the image in conversation template llava_v1, which LISA was trained with (model/llava/
conversation.py); the image follows between <im_start> and <im_end>."""
_QUESTION = (
    "Which parts of this image does one have to look at to do the following? {instruction} "
    "Please output segmentation mask. ASSISTANT:"
)
"""What stands after it. The request to `output segmentation mask` ends LISA's training questions (utils/utils.py)."""
_MEAN, _STD = np.array([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]], dtype=np.float32)
"""SAM's normalisation of pixels in [0, 255]."""
_SLENDER = 16
"""Sides' ratio from which on an image's ends are cut off before it is resized to CLIP's short side."""


class LisaOptions(ModelOptions):
    """`checkpoint` is a folder or hub id in the layout of xinlai/LISA-13B-llama2-v1; `vision_tower` the CLIP model that
    its config.json names; `max_new_tokens` how long an answer may be: [SEG] comes within the first ten or so."""

    vision_tower: ModelOptions = ModelOptions(checkpoint="openai/clip-vit-large-patch14")
    max_new_tokens: int = Field(64, ge=4, le=1024)


@dataclass(frozen=True, eq=False)
class _Segment:
    """A [SEG] of an answer: the `prompt` float32 (channels,) for SAM's decoder and the token's probability."""

    prompt: torch.Tensor
    probability: float


@dataclass(frozen=True, eq=False)
class _Encoded:
    """SAM's features float32 (1, channels, grid, grid); `inside` height and width of the image in the padded input."""

    features: torch.Tensor
    inside: tuple[int, ...]


class Lisa(TorchExpert):
    """LISA (Lai et al., CVPR 2024, arXiv 2308.00692): LLaVA is asked for a mask and answers in words among which [SEG]
    stands for one; SAM's decoder draws it, prompted by the hidden state that [SEG] was predicted from.

    A mask's score is the mean over its pixels of their certainty, which is the probability of [SEG] times that of the
    pixel, as in Mask2Former: SAM's own predicted IoU is not trained along. Where an answer has several masks their
    union is a candidate too, each pixel as certain as in the surest of them. An answer without [SEG] gives none.
    """

    summary = "what a whole instruction is about: LISA, a LLaVA that answers with masks by way of SAM"
    limits = "7 or 13 billion weights; its LLaVA sees the central square of the image, 224 pixels wide"
    needs = ("torch", "transformers", "segment_anything", "sentencepiece")
    Options = LisaOptions
    options: LisaOptions

    def __init__(self, options: LisaOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        tower = load_pretrained(CLIPVisionModel, options.vision_tower, self.torch_device)
        self.processor = load_processor(CLIPImageProcessor, options.vision_tower)
        self.tokenizer = load_processor(LlamaTokenizer, options)
        self.model = load_lisa(options, tower, self.torch_device)
        self.generation = GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.eos_token_id,
        )
        self.seg, start, self.end = self._special_tokens()
        self.opening = [self.tokenizer.bos_token_id, *self._ids(_OPENING), start]
        self.room = self._room()

    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        texts = [unique_texts(scene.requests, "instruction") for scene in scenes]
        asked = [k for k in range(len(scenes)) if texts[k]]
        seen = dict(zip(asked, self.batches.map(self._see, [scenes[k].image for k in asked]), strict=True))
        pairs = [(k, text) for k in asked for text in texts[k]]
        answers = self.batches.map(lambda batch: self._answer([(seen[k], text) for k, text in batch]), pairs)
        segments = dict(zip(pairs, answers, strict=True))

        shown = list(dict.fromkeys(k for (k, _), found in segments.items() if found))
        encoded = dict(zip(shown, self.batches.map(self._encode, [scenes[k].image for k in shown]), strict=True))
        candidates: list[dict[str, list[Candidate]]] = [{} for _ in scenes]
        for (k, text), found in segments.items():
            candidates[k][text] = self._candidates(text, found, encoded[k], scenes[k].image) if found else []
        return [per_request(scene.requests, "instruction", of) for scene, of in zip(scenes, candidates, strict=True)]

    def _see(self, images: list[np.ndarray]) -> list[torch.Tensor]:
        """LLaVA's tokens (patches, hidden) of each image."""
        middles = [Image.fromarray(_middle(image)) for image in images]
        pixels = self.processor(images=middles, return_tensors="pt").pixel_values
        return list(self.model.see(pixels.to(self.torch_device)))

    def _answer(self, pairs: list[tuple[torch.Tensor, str]]) -> list[list[_Segment]]:
        """The [SEG]s of the answers about images, as `_see` gave them, and instructions."""
        prompts = []
        for seen, instruction in pairs:
            ids = torch.tensor(self.opening + self._question(instruction), device=self.torch_device)
            before, after = self.model.embed(ids).split([len(self.opening), len(ids) - len(self.opening)])
            prompts.append(torch.cat([before, seen, after]))
        ids, states = self.model.answer(prompts, self.generation)
        segments = []
        for of_answer, is_seg in zip(states, ids == self.seg, strict=True):
            chosen = of_answer[is_seg]
            probabilities = self.model.llava.lm_head(chosen).float().softmax(-1)[:, self.seg].tolist()
            found = zip(self.model.projection(chosen).float(), probabilities, strict=True)
            segments.append([_Segment(*segment) for segment in found])
        return segments

    def _encode(self, images: list[np.ndarray]) -> list[_Encoded]:
        encoder = self.model.sam.image_encoder
        resized = [self._resized(image) for image in images]
        sides = [tuple(pixels.shape[1:]) for pixels in resized]
        padded = torch.stack(
            [pad(x, (0, encoder.img_size - x.shape[2], 0, encoder.img_size - x.shape[1])) for x in resized]
        )
        features = encoder(padded.to(self.options.torch_dtype)).float()
        return [_Encoded(of_image[None], inside) for of_image, inside in zip(features, sides, strict=True)]

    def _resized(self, image: np.ndarray) -> torch.Tensor:
        """float32 (3, height, width), normalised, the long side that of SAM's input, as chat.py does it."""
        side = self.model.sam.image_encoder.img_size
        height, width = image.shape[:2]
        scale = side / max(height, width)
        size = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
        pixels = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
        normal = (pixels - _MEAN) / _STD
        return torch.from_numpy(normal).permute(2, 0, 1).to(self.torch_device)

    def _candidates(
        self, instruction: str, segments: list[_Segment], encoded: _Encoded, image: np.ndarray
    ) -> list[Candidate]:
        prompts = [segment.prompt for segment in segments]
        logits = self.batches.map(lambda batch: list(self.model.decode(encoded.features, torch.stack(batch))), prompts)
        found = []
        union, most_certain = np.zeros((2, *image.shape[:2]), dtype=np.float32)
        for segment, of_mask in zip(segments, logits, strict=True):
            probability = self._enlarged(of_mask, encoded.inside, image.shape[:2]).sigmoid().cpu().numpy()
            mask, certainty = probability > 0.5, segment.probability * probability
            found.append(_candidate(mask, certainty, instruction))
            union, most_certain = np.maximum(union, mask), np.maximum(most_certain, certainty)
        return [*found, _candidate(union > 0, most_certain, instruction)] if len(found) > 1 else found

    def _enlarged(self, logits: torch.Tensor, inside: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
        """Mask logits at an image's size: to SAM's input, without its padding, and then to the image."""
        side = self.model.sam.image_encoder.img_size
        padded = interpolate(logits[None, None], (side, side), mode="bilinear", align_corners=False)
        cropped = padded[..., : inside[0], : inside[1]]
        return interpolate(cropped, size, mode="bilinear", align_corners=False)[0, 0]

    def _question(self, instruction: str) -> list[int]:
        """Token ids of what stands after the image; the authors' tokenizer drops the line break that they put there."""
        return [self.end, *self._ids(_QUESTION.format(instruction=self._short(instruction)))]

    def _short(self, instruction: str) -> str:
        ids = self._ids(instruction)
        return self.tokenizer.decode(ids[: self.room]) if len(ids) > self.room else instruction

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _special_tokens(self) -> list[int]:
        """Ids of the token for a mask and of the two around an image.

        Raises:
            InputError: the tokenizer is not the model's, or tokenizer.model is absent, which transformers lets pass.
        """
        vocabulary = self.tokenizer.get_vocab()
        wanted = self.model.llava.config.text_config.vocab_size
        names = ("[SEG]", "<im_start>", "<im_end>")
        if len(vocabulary) != wanted or any(name not in vocabulary for name in names):
            raise InputError(
                f"checkpoint {self.options.checkpoint}: its tokenizer has {len(vocabulary)} tokens, its model {wanted} "
                f"with {', '.join(names)}; complete tokenizer.model and added_tokens.json from its source"
            )
        return [vocabulary[name] for name in names]

    def _room(self) -> int:
        """How many tokens an instruction may have.

        Raises:
            InputError: `max_new_tokens` leaves none.
        """
        config = self.model.llava.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        template = len(self.opening) + patches + 1 + len(self._ids(_QUESTION))
        room = config.text_config.max_position_embeddings - template - self.options.max_new_tokens
        if room < 1:
            raise InputError(
                f"expert lisa: max_new_tokens {self.options.max_new_tokens} leaves no room for a question to "
                f"{self.options.checkpoint}; give {self.options.max_new_tokens + room - 1} or fewer"
            )
        return room


def _candidate(mask: np.ndarray, certainty: np.ndarray, instruction: str) -> Candidate:
    return Candidate(mask, float(certainty[mask].mean()) if mask.any() else 0.0, instruction)


def _middle(image: np.ndarray) -> np.ndarray:
    """A very long image without its ends, which CLIP's processor would cut off only after it has enlarged them."""
    height, width = image.shape[:2]
    longest = min(height, width) * _SLENDER
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return image[top : top + longest, left : left + longest]
