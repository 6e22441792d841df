"""The frozen encoders of the discriminator `ivm`: SAM's of the image, CLIP's or LLaVA's of image and instruction."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration

from experts.base import Placement
from experts.model import (
    MicroBatches,
    ModelOptions,
    check_model_type,
    load_pretrained,
    load_processor,
    pick_device,
)
from experts.region_scoring import to_square
from experts.sam_hf import SamHf
from experts.segmenter import SegmenterOptions
from pipeline.errors import InputError
from stages.ivm_config import Checkpoint, IvmConfig

Tokens = tuple[Tensor, ...]
"""The condition of one image-instruction pair: one tensor (tokens, width) for each of `Condition.widths`."""

_PROMPT = "USER: {image}\n{instruction} ASSISTANT:"
"""LLaVA-1.5's form of a question."""
_LORA_TARGETS = ["q_proj", "v_proj"]
"""As in the LoRA paper (arXiv 2106.09685, section 4.2)."""


class Condition(ABC):
    """What encodes an instruction together with its image.

    `widths`: of the parts of its `Tokens`. `trained`: parameters that learn, by name; of all others none do.
    """

    widths: tuple[int, ...]

    def __init__(self, options: ModelOptions, placement: Placement) -> None:
        self.device = pick_device(placement.device)
        self.dtype = options.torch_dtype
        self.batches = MicroBatches(placement.batch)
        self.tokenizer = load_processor(AutoTokenizer, options)
        self.image_processor = load_processor(AutoImageProcessor, options)
        self.trained: dict[str, nn.Parameter] = {}

    @abstractmethod
    def look(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """What depends on the image alone, all of one shape, of images uint8 RGB (height, width, 3)."""

    @abstractmethod
    def read(self, looks: Sequence[Tensor], texts: Sequence[str]) -> list[Tokens]:
        """The condition of each pair of what `look` gave for its image, and its instruction."""

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        # Made square with bars: the processors of both crop the ends of anything longer.
        grey = [round(255 * mean) for mean in self.image_processor.image_mean]
        squares = [to_square(image, grey) for image in images]
        inputs = self.image_processor(images=squares, input_data_format="channels_last", return_tensors="pt")
        return inputs["pixel_values"].to(self.device, self.dtype)


class ClipCondition(Condition):
    """CLIP: the states of the text's tokens, and the image's embedding as one token more."""

    def __init__(self, options: ModelOptions, placement: Placement) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(CLIPModel, options, self.device)
        self.widths = (self.model.config.text_config.hidden_size, self.model.config.projection_dim)

    def look(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        def forward(batch: list[np.ndarray]) -> list[Tensor]:
            return list(self.model.get_image_features(self._pixels(batch)).pooler_output[:, None])

        return self.batches.map(forward, images)

    def read(self, looks: Sequence[Tensor], texts: Sequence[str]) -> list[Tokens]:
        different = list(dict.fromkeys(texts))
        states = dict(zip(different, self.batches.map(self._states, different), strict=True))
        return [(states[text], look) for text, look in zip(texts, looks, strict=True)]

    def _states(self, texts: list[str]) -> list[Tensor]:
        longest = self.model.config.text_config.max_position_embeddings
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        states = self.model.text_model(**inputs.to(self.device)).last_hidden_state
        return [one[kept.bool()] for one, kept in zip(states, inputs["attention_mask"], strict=True)]


class LlavaCondition(Condition):
    """LLaVA: the last hidden states of the question's tokens after the image, which have seen image and instruction.

    With a LoRA rank the language model's adapters learn.
    """

    def __init__(self, options: ModelOptions, placement: Placement, lora_rank: int) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(LlavaForConditionalGeneration, options, self.device).model
        self.widths = (self.model.config.text_config.hidden_size,)
        self.image_token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        if lora_rank:
            self.trained = _add_lora(self.model.language_model, lora_rank)

    def look(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        def forward(batch: list[np.ndarray]) -> list[Tensor]:
            return list(self.model.get_image_features(self._pixels(batch)).pooler_output)

        return self.batches.map(forward, images)

    def read(self, looks: Sequence[Tensor], texts: Sequence[str]) -> list[Tokens]:
        return self.batches.map(self._states, list(zip(looks, texts, strict=True)))

    def _states(self, pairs: list[tuple[Tensor, str]]) -> list[Tokens]:
        embed = self.model.get_input_embeddings()
        prompts, after = [], []
        for look, text in pairs:
            ids = self._question(text)
            place = ids.index(self.model.config.image_token_id)
            before, rest = (embed(torch.tensor(part, device=self.device)) for part in (ids[:place], ids[place + 1 :]))
            prompts.append(torch.cat([before, look.to(embed.weight), rest]))
            after.append(len(rest))
        # Padding on the right is never attended to by what comes before it: attention is causal.
        attended = pad_sequence([prompt.new_ones(len(prompt)) for prompt in prompts], batch_first=True).long()
        states = self.model.language_model(
            inputs_embeds=pad_sequence(prompts, batch_first=True), attention_mask=attended, use_cache=False
        ).last_hidden_state
        ends = [len(prompt) for prompt in prompts]
        return [(one[end - n : end],) for one, end, n in zip(states, ends, after, strict=True)]

    def _question(self, text: str) -> list[int]:
        # An instruction that names the token itself would ask for a second image.
        said = text.replace(self.image_token, "image")
        return self.tokenizer(_PROMPT.format(image=self.image_token, instruction=said))["input_ids"]


def _add_lora(model: nn.Module, rank: int) -> dict[str, nn.Parameter]:
    """Adds LoRA adapters, the same at every call, and returns their parameters, float32."""
    try:
        peft: Any = importlib.import_module("peft")
    except ImportError as error:
        raise InputError(
            "discriminator.lora_rank needs the package peft: install the extra 'lora' (pip install 'ivm-mix[lora]'), "
            "or set lora_rank: 0"
        ) from error
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LORA_TARGETS, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft.inject_adapter_in_model(config, model)
    found = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for value in found.values():
        value.data = value.data.float()
    return found


@dataclass(frozen=True, eq=False)
class Seen:
    """An image as the frozen encoders left it: SAM's `embedding` (channels, grid, grid), the condition's `look`."""

    embedding: Tensor
    look: Tensor


class Encoders:
    """SAM and the condition's model, loaded and frozen."""

    def __init__(self, config: IvmConfig) -> None:
        """Loads both.

        Raises:
            InputError: a checkpoint is missing, corrupt or of another model, or peft is missing; naming the field.
        """
        self.config = config
        placement = Placement(device=config.device, batch=config.encode_batch)
        self.device = pick_device(config.device)
        sam, condition = (_options(checkpoint, config) for checkpoint in (config.sam, config.condition))
        try:
            check_model_type(sam, load_processor(AutoConfig, sam).model_type, ("sam",))
            self.sam = SamHf(SegmenterOptions(name="sam_hf", **sam.model_dump()), placement)
        except InputError as error:
            raise InputError(f"discriminator.sam: {error}") from error
        try:
            self.condition = _load_condition(condition, placement, config.lora_rank)
        except InputError as error:
            raise (
                error if "discriminator." in str(error) else InputError(f"discriminator.condition: {error}")
            ) from error
        self._first = {name: value.detach().clone() for name, value in self.condition.trained.items()}

    @torch.no_grad()
    def see(self, images: Sequence[np.ndarray]) -> list[Seen]:
        """One pass of each image encoder per image, uint8 RGB (height, width, 3)."""
        encoded = self.sam.encode(images)
        embeddings = [one.features.embeddings["image_embeddings"][0] for one in encoded]
        return [Seen(*both) for both in zip(embeddings, self.condition.look(images), strict=True)]

    def read(self, looks: Sequence[Tensor], texts: Sequence[str]) -> list[Tokens]:
        """The condition of each pair; with gradients only where something in it learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.condition.trained)):
            return self.condition.read(looks, texts)

    @torch.no_grad()
    def reset(self) -> None:
        """Adapters as they were before any training."""
        for name, value in self.condition.trained.items():
            value.copy_(self._first[name])


def _options(checkpoint: Checkpoint, config: IvmConfig) -> ModelOptions:
    return ModelOptions(checkpoint=checkpoint.checkpoint, revision=checkpoint.revision, dtype=config.precision)


def _load_condition(options: ModelOptions, placement: Placement, lora_rank: int) -> Condition:
    kind = load_processor(AutoConfig, options).model_type
    check_model_type(options, kind, ("clip", "llava"))
    if kind == "llava":
        return LlavaCondition(options, placement, lora_rank)
    if lora_rank:
        raise InputError("discriminator.lora_rank is for a LLaVA condition; set lora_rank: 0 with CLIP")
    return ClipCondition(options, placement)
