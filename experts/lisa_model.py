"""LISA's published weights as transformers' LLaVA, segment-anything's SAM, and the projection from one to the other.

Names and shapes as in model/LISA.py of github.com/dvlab-research/LISA, whose checkpoints are sharded pytorch_model
files of one state dict. Llama's keys are `model.embed_tokens`, `model.layers`, `model.norm`, `lm_head`; LLaVA's linear
projection is `model.mm_projector`; SAM is `model.visual_model`; the projection of [SEG] is `model.text_hidden_fcs.0`.
The CLIP vision tower is not among them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from experts.checkpoints import UNREADABLE, load_pth, load_weights, local_path
from experts.model import ModelOptions
from experts.sam import build_sam
from pipeline.errors import InputError

_LAYOUT = (
    ("model.visual_model.", "sam", ""),
    ("model.text_hidden_fcs.0.", "projection", ""),
    ("model.mm_projector.", "llava", "model.multi_modal_projector."),
    ("model.", "llava", "model.language_model."),
    ("lm_head.", "llava", "lm_head."),
)
"""Prefix of a published key, the part it belongs to, the prefix there. The first that fits."""
_LLAMA_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
)


class _Projector(nn.Linear):
    """LLaVA 1's projection of image features, which may come in another dtype."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features.to(self.weight.dtype))


class LisaModel(nn.Module):
    """The whole model. `projection` makes a hidden state of `llava` a prompt for the mask decoder of `sam`."""

    def __init__(self, llava: LlavaForConditionalGeneration, projection: nn.Sequential, sam: Sam) -> None:
        super().__init__()
        self.llava: Any = llava
        self.projection = projection
        self.sam = sam

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """LLaVA's tokens (n, patches, hidden) of images (n, 3, side, side), normalised as CLIP wants them."""
        pixels = pixels.to(self.llava.model.vision_tower.dtype)
        return torch.stack(list(self.llava.get_image_features(pixels).pooler_output))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llava.get_input_embeddings()(ids)

    def answer(
        self, prompts: Sequence[torch.Tensor], generation: GenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Answers to prompts, each embeddings (its length, hidden).

        Returns:
            int64 token ids (n, longest answer), padded with the end token, and for each the hidden state that it was
            predicted from, (n, longest answer, hidden). It is one pass over prompts and answers, as in the authors'
            code, which generates without a cache: keeping the states of all layers of all steps is dearer.
        """
        longest = max(len(prompt) for prompt in prompts)
        padded = torch.stack([nn.functional.pad(p, (0, 0, longest - len(p), 0)) for p in prompts])
        attended = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts]).to(padded.device)
        ids = self.llava.generate(inputs_embeds=padded, attention_mask=attended.long(), generation_config=generation)
        attended = torch.cat([attended, torch.ones_like(ids, dtype=torch.bool)], dim=1).long()
        states = self.llava.model.language_model(
            inputs_embeds=torch.cat([padded, self.embed(ids)], dim=1),
            attention_mask=attended,
            position_ids=(attended.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
        ).last_hidden_state
        return ids, states[:, longest - 1 : -1]

    def decode(self, encoded: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Mask logits float32 (n, 4 * grid, 4 * grid) of an image's SAM features (1, channels, grid, grid) for prompts
        (n, channels): the single mask of the decoder, the only one that LISA trains."""
        encoder = self.sam.prompt_encoder
        no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        logits, _ = self.sam.mask_decoder(
            image_embeddings=encoded,
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=no_mask.expand(len(prompts), -1, *encoder.image_embedding_size),
            multimask_output=False,
        )
        return logits[:, 0]


def load_lisa(options: ModelOptions, tower: CLIPVisionModel, device: torch.device) -> LisaModel:
    """The model of a published checkpoint, in evaluation mode on its device, with a vision tower loaded before.

    LLaVA and SAM's image encoder are of the options' dtype; SAM's decoder is float32, as for segmenter `sam`. One shard
    at a time is in memory besides the model.

    Raises:
        InputError: weights are missing, corrupt, left over or of another model; naming the checkpoint and the weight.
    """
    folder = _folder(options)
    llava = _empty_llava(folder, tower, options.torch_dtype, device)
    others: dict[str, dict[str, torch.Tensor]] = {"sam": {}, "projection": {}}
    absent = {name for name in llava.state_dict() if not name.startswith("model.vision_tower.")}
    for file in _shards(folder):
        weights = _parts(_read(file), folder)
        try:
            foreign = llava.load_state_dict(weights["llava"], strict=False).unexpected_keys
        except RuntimeError as error:
            raise InputError(f"checkpoint {folder} does not fit its config.json: {_last_line(error)}") from error
        if foreign:
            raise InputError(
                f"checkpoint {folder} does not fit its config.json: {len(foreign)} weights too many, as "
                f"{_published(foreign[0])}"
            )
        absent -= weights["llava"].keys()
        for name, part in others.items():
            part.update(weights[name])
    if absent:
        raise InputError(
            f"checkpoint {folder} is not of LISA: it lacks {len(absent)} weights, as {_published(min(absent))}"
        )
    sam = build_sam(others["sam"], folder).to(device)
    sam.image_encoder.to(options.torch_dtype)
    projection = _projection(others["projection"], llava.config.text_config.hidden_size, sam, folder)
    model = LisaModel(llava, projection.to(device, options.torch_dtype), sam)
    return model.eval().requires_grad_(False)


def _folder(options: ModelOptions) -> Path:
    path = local_path(options.checkpoint)
    if path is not None:
        return path
    try:
        return Path(snapshot_download(options.checkpoint, revision=options.revision))
    except UNREADABLE as error:
        raise InputError(f"checkpoint {options.checkpoint} cannot be loaded: {_last_line(error)}") from error


def _empty_llava(folder: Path, tower: CLIPVisionModel, dtype: torch.dtype, device: torch.device) -> Any:
    """LLaVA of the sizes in the checkpoint's config.json. Its `model_type` is that of transformers' LLaVA, its fields
    are those of Llama with some of the authors' own."""
    try:
        published = json.loads((folder / "config.json").read_text())
        llama = LlamaConfig(**{field: published[field] for field in _LLAMA_FIELDS})
        layer = int(published.get("mm_vision_select_layer", -2))
        config = LlavaConfig(vision_config=tower.config, text_config=llama, vision_feature_layer=layer)
    except UNREADABLE as error:
        raise InputError(
            f"checkpoint {folder} is not of LISA: its config.json cannot be used ({type(error).__name__}: {error})"
        ) from error
    with no_init_weights(), torch.device(device):
        llava = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        llava.model.multi_modal_projector = _Projector(tower.config.hidden_size, llama.hidden_size, dtype=dtype)
    llava.model.vision_tower = tower
    return llava


def _shards(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"checkpoint {folder} has no weights: neither .safetensors nor pytorch_model*.bin")
    return files


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".bin":
        return load_pth(file)
    try:
        return load_file(file)
    except UNREADABLE as error:
        raise InputError(f"checkpoint file {file} is corrupt ({type(error).__name__})") from error


def _parts(weights: dict[str, Any], folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights by the part that they belong to, named as there."""
    parts: dict[str, dict[str, torch.Tensor]] = {"llava": {}, "sam": {}, "projection": {}}
    for key, tensor in weights.items():
        # transformers 4.31, which wrote the checkpoints, saved this table, which follows from the sizes.
        if key.endswith(".rotary_emb.inv_freq"):
            continue
        fitting = [row for row in _LAYOUT if key.startswith(row[0])]
        if not fitting:
            raise InputError(f"checkpoint {folder} is not of LISA: it has no place for weight {key}")
        published, part, ours = fitting[0]
        parts[part][ours + key.removeprefix(published)] = tensor
    return parts


def _published(name: str) -> str:
    """The key in the checkpoint of a weight of transformers' LLaVA."""
    return next(
        key + name.removeprefix(ours) for key, part, ours in _LAYOUT if part == "llava" and name.startswith(ours)
    )


def _projection(weights: dict[str, torch.Tensor], hidden: int, sam: Sam, folder: Path) -> nn.Sequential:
    out = sam.prompt_encoder.embed_dim
    projection = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out))
    load_weights(projection, weights, folder)
    return projection


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
