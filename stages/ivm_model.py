"""The discriminator `ivm`'s network: image, instruction and mask in, logits of d and quality out.

As in arXiv 2405.19783, section 4: SAM's image embedding and the tokens of an image-text condition meet in a two-way
transformer. The authors' released code leaves the mask out of it; here it enters as SAM's dense prompt does, added to
the image embedding. The mask's embedding, the transformer and the first token (SAM's for the predicted IoU) start from
SAM's own weights.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from experts.checkpoints import UNREADABLE
from pipeline.errors import InputError
from stages.ivm_config import IvmConfig
from stages.ivm_encoders import Encoders, Seen, Tokens

_LOGIT = 10.0
"""SAM's mask prompt is a mask's logits: this one inside, minus this one outside."""
_CONDITION = "condition."
_KEY = "ivm"


class IvmNet(nn.Module):
    """Two logits, d and quality. Its parameters are those that learn; the frozen encoders are no part of it.

    Adapters of LoRA lie in the encoders: nets that share them share these too, whichever was trained or loaded last.
    """

    position: Tensor

    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.encoders, sam = encoders, encoders.sam.model
        self.grid = sam.config.prompt_encoder_config.image_embedding_size
        width = sam.config.mask_decoder_config.hidden_size
        self.register_buffer("position", sam.get_image_wide_positional_embeddings().float(), persistent=False)
        self.mask_embedding = copy.deepcopy(sam.prompt_encoder.mask_embed)
        self.transformer = copy.deepcopy(sam.mask_decoder.transformer)
        self.cls = nn.Parameter(sam.mask_decoder.iou_token.weight.detach().clone())
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, width)) for size in encoders.condition.widths
        )
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, 2))
        self.requires_grad_(True).to(encoders.device)

    @property
    def config(self) -> IvmConfig:
        return self.encoders.config

    def forward(self, images: Sequence[np.ndarray], texts: Sequence[str], masks: Sequence[np.ndarray]) -> Tensor:
        """Logits float32 (n, 2) of n masks; an image that comes n times as the same object is encoded once.

        Args:
            images: n of uint8 RGB (height, width, 3).
            texts: n instructions.
            masks: n of bool (height, width), each of its image's size.
        """
        different = {id(image): image for image in images}
        seen = dict(zip(different, self.encoders.see(list(different.values())), strict=True))
        pairs = dict.fromkeys((id(image), text) for image, text in zip(images, texts, strict=True))
        read = self.encoders.read([seen[key].look for key, _ in pairs], [text for _, text in pairs])
        conditions = dict(zip(pairs, read, strict=True))
        embeddings = torch.stack([seen[id(image)].embedding for image in images])
        tokens = [conditions[id(image), text] for image, text in zip(images, texts, strict=True)]
        return self.judge(embeddings, tokens, masks)

    def judge(self, embeddings: Tensor, conditions: Sequence[Tokens], masks: Sequence[np.ndarray]) -> Tensor:
        """Logits float32 (n, 2) of n masks, bool (height, width), from what the encoders made of image and text.

        Args:
            embeddings: (n, channels, grid, grid), or (1, …) if all masks are of one image.
            conditions: n of `Tokens`.
            masks: n masks.
        """
        planes = torch.from_numpy(np.stack([mask_plane(mask, 4 * self.grid) for mask in masks]))
        with self.autocast():
            dense = self.mask_embedding(planes[:, None].to(self.encoders.device) * 2 * _LOGIT - _LOGIT)
            tokens, kept = self._tokens(conditions)
            first = two_way(self.transformer, tokens, embeddings.float() + dense, self.position, kept)[:, 0]
            return self.head(first).float()

    def autocast(self) -> torch.autocast:
        """Mixed precision as configured; float32 is none."""
        dtype = getattr(torch, self.config.precision)
        return torch.autocast(self.encoders.device.type, dtype, enabled=dtype != torch.float32)

    def _tokens(self, conditions: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Tokens (n, longest, channels), `cls` first, and which of them are no padding, bool (n, longest)."""
        device, rows = self.encoders.device, []
        for parts in conditions:
            projected = [layer(part.to(device).float()) for layer, part in zip(self.projections, parts, strict=True)]
            rows.append(torch.cat([self.cls, *projected]))
        lengths = torch.tensor([len(row) for row in rows], device=device)
        tokens = pad_sequence(rows, batch_first=True)
        return tokens, torch.arange(tokens.shape[1], device=device) < lengths[:, None]

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray], texts: Sequence[str], masks: Sequence[np.ndarray]) -> np.ndarray:
        """d and quality in [0, 1], float32 (n, 2); arguments as of `forward`."""
        self.eval()
        return self(images, texts, masks).sigmoid().cpu().numpy()

    @torch.no_grad()
    def score(self, seen: Seen, text: str, masks: Sequence[np.ndarray]) -> np.ndarray:
        """d and quality in [0, 1], float32 (n, 2), of n masks of one image and instruction."""
        self.eval()
        [tokens] = self.encoders.read([seen.look], [text])
        size = self.config.batch
        parts = [
            self.judge(seen.embedding[None], [tokens] * len(masks[k : k + size]), masks[k : k + size])
            for k in range(0, len(masks), size)
        ]
        return torch.cat(parts).sigmoid().cpu().numpy()

    def trained(self) -> dict[str, nn.Parameter]:
        """All that learns, by name, adapters of the condition's model included."""
        adapters = {f"{_CONDITION}{name}": value for name, value in self.encoders.condition.trained.items()}
        return dict(self.named_parameters()) | adapters

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained weights, float32 on the CPU."""
        return {name: value.detach().cpu().clone().contiguous() for name, value in self.trained().items()}

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes what `weights` gave.

        Raises:
            InputError: they are of another model: some are missing, left over or of another shape.
        """
        own = self.trained()
        odd = sorted(weights.keys() ^ own.keys()) or [k for k, value in own.items() if value.shape != weights[k].shape]
        if odd:
            raise InputError(f"the discriminator's weights do not fit its checkpoints, as {odd[0]}; train it anew")
        for name, value in own.items():
            value.copy_(weights[name])

    def save(self, path: Path, made_from: str = "") -> None:
        """Writes the trained weights as safetensors, with the config and the digest of what they were made from."""
        save_file(self.weights(), path, metadata(self.config, made_from))

    @classmethod
    def load(cls, path: Path, encoders: Encoders | None = None) -> Self:
        """What `save` wrote, in evaluation mode, on these encoders, by default on those that its config names.

        Raises:
            InputError: the file or a checkpoint is missing or corrupt, or they do not belong together.
        """
        config = IvmConfig.model_validate(read_metadata(path)["config"])
        encoders = encoders or Encoders(config)
        if (encoders.config.sam, encoders.config.condition) != (config.sam, config.condition):
            raise InputError(f"{path} was trained on other checkpoints, {config.sam} and {config.condition}")
        net = cls(encoders)
        net.set_weights(load_file(path))
        return net.eval()


def metadata(config: IvmConfig, made_from: str, **further: Any) -> dict[str, str]:
    """What a file of weights says about itself, for `read_metadata`."""
    # One key: safetensors writes several in an order that changes from run to run.
    return {_KEY: json.dumps({"config": config.model_dump(mode="json"), "made_from": made_from, **further})}


def read_metadata(path: Path) -> dict[str, Any]:
    """`config`, `made_from` and what else `metadata` was given.

    Raises:
        InputError: the file is missing, corrupt, or not a discriminator's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}); train the discriminator anew") from error
    if _KEY not in found:
        raise InputError(f"{path} is not of a discriminator of model ivm; train it anew")
    return json.loads(found[_KEY])


def mask_plane(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask, bool (height, width), as SAM places its image: the longer side resized to `side`, the rest padded on
    the right and below. float32 (side, side), the share of each cell in [0, 1] that is mask."""
    height, width = (max(1, round(length * side / max(mask.shape))) for length in mask.shape)
    plane = np.zeros((side, side), dtype=np.float32)
    plane[:height, :width] = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return plane


def two_way(transformer: Any, tokens: Tensor, image: Tensor, position: Tensor, kept: Tensor) -> Tensor:
    """The tokens (n, t, channels) that leave SAM's two-way transformer, padding left out of account.

    Runs the layers of transformers' `SamTwoWayTransformer`, whose own `forward` takes no mask of the tokens.

    Args:
        transformer: a `SamTwoWayTransformer`.
        tokens: (n, t, channels).
        image: (n, channels, grid, grid).
        position: (1, channels, grid, grid), positional embedding of the image.
        kept: bool (n, t), False at padding.
    """
    given, kept = tokens[:, None], kept[:, None, None]
    keys, place = (part.flatten(2).transpose(1, 2)[:, None] for part in (image, position))
    queries = given
    for layer in transformer.layers:
        asking = queries if layer.skip_first_layer_pe else queries + given
        attended, _ = layer.self_attn(query=asking, key=asking, value=queries, attention_similarity=kept)
        queries = layer.layer_norm1(attended if layer.skip_first_layer_pe else queries + attended)
        attended, _ = layer.cross_attn_token_to_image(query=queries + given, key=keys + place, value=keys)
        queries = layer.layer_norm2(queries + attended)
        queries = layer.layer_norm3(queries + layer.mlp(queries))
        attended, _ = layer.cross_attn_image_to_token(
            query=keys + place, key=queries + given, value=queries, attention_similarity=kept
        )
        keys = layer.layer_norm4(keys + attended)
    attended, _ = transformer.final_attn_token_to_image(query=queries + given, key=keys + place, value=keys)
    return transformer.layer_norm_final_attn(queries + attended)[:, 0]
