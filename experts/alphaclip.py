"""AlphaCLIP (Sun et al., CVPR 2024): a CLIP whose image encoder is told by a fourth channel which part to look at."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPModel

from experts.checkpoints import load_pth, load_weights
from pipeline.errors import InputError

_ALPHA_MEAN, _ALPHA_STD = 0.5, 0.26
_VISION = ("vision_model.", "visual_projection.")
_OUTER = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
}
_INNER = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def use_alpha_tower(clip: CLIPModel, path: Path) -> None:
    """Makes a CLIP an AlphaCLIP: its image encoder takes pixels (n, 4, side, side) from then on, the fourth channel
    being `alpha_channel`. The text encoder, which AlphaCLIP leaves as it was, is kept.

    Args:
        clip: of the size that the AlphaCLIP was trained from, ViT-B/16, ViT-L/14 or ViT-L/14 at 336 px.
        path: a file of AlphaCLIP's model zoo (github.com/SunzeY/AlphaCLIP, model-zoo.md).

    Raises:
        InputError: the file is no AlphaCLIP image encoder, or one of another size.
    """
    weights = vision_weights(load_pth(path), path)
    # The released model adds two convolutions, of the pixels and of alpha; one over all four channels is the same.
    pixels = clip.vision_model.embeddings.patch_embedding
    clip.vision_model.embeddings.patch_embedding = nn.Conv2d(
        4, pixels.out_channels, pixels.kernel_size, pixels.stride, bias=False, device=pixels.weight.device
    ).to(pixels.weight.dtype)
    kept = {name: weight for name, weight in clip.state_dict().items() if not name.startswith(_VISION)}
    load_weights(clip, kept | weights, path)
    clip.requires_grad_(False)


def vision_weights(published: dict[str, Any], path: Path) -> dict[str, Any]:
    """The state dict of AlphaCLIP's image encoder under transformers' names.

    Published is OpenAI CLIP's `visual` (alpha_clip/model.py, VisionTransformer) with `conv1_alpha.weight` beside
    `conv1.weight` and, since its attention is two linear layers, `attn.in_proj.weight` and `.bias` for OpenAI's
    `attn.in_proj_weight` and `_bias`: query, key and value one after another. `proj` is applied from the right.
    Names it does not know are kept, for `load_weights` to refuse: so are LoRA's, which the authors' loader leaves off.

    Args:
        path: where it is from, for the message.

    Raises:
        InputError: a convolution is missing or weights are not tensors.
    """
    absent = {"conv1.weight", "conv1_alpha.weight", "proj"} - published.keys()
    if absent or not all(isinstance(weight, torch.Tensor) for weight in published.values()):
        told = f"lacks {min(absent)}" if absent else "holds other things than tensors"
        raise InputError(f"checkpoint {path} is no AlphaCLIP image encoder: it {told}")
    rest = dict(published)
    convolutions = [rest.pop("conv1.weight"), rest.pop("conv1_alpha.weight")]
    renamed = {
        "vision_model.embeddings.patch_embedding.weight": torch.cat([weight.float() for weight in convolutions], 1),
        "visual_projection.weight": rest.pop("proj").T,
    }
    for name, weight in rest.items():
        renamed |= _renamed(name, weight)
    return renamed


def _renamed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    if not name.startswith("transformer.resblocks."):
        module, dot, kind = name.partition(".")
        return {_OUTER.get(module, module) + dot + kind: weight}
    number, _, inner = name.removeprefix("transformer.resblocks.").partition(".")
    module, _, kind = inner.rpartition(".")
    layer = f"vision_model.encoder.layers.{number}"
    if module == "attn.in_proj" and kind in ("weight", "bias"):
        thirds = zip("qkv", weight.chunk(3), strict=False)
        return {f"{layer}.self_attn.{part}_proj.{kind}": third for part, third in thirds}
    return {f"{layer}.{_INNER.get(module, module)}.{kind}": weight}


def alpha_channel(mask: torch.Tensor, side: int) -> torch.Tensor:
    """The fourth channel for a mask: resized, then normalised by mean 0.5 and standard deviation 0.26 as the
    authors' README says.

    Args:
        mask: (n, 1, height, width) of any dtype, 1 inside and 0 outside.
        side: pixels of the model's square input.

    Returns:
        float32 (n, 1, side, side), about 1.92 inside and -1.92 outside.
    """
    soft = nn.functional.interpolate(mask.float(), (side, side), mode="bilinear", antialias=True)
    return (soft - _ALPHA_MEAN) / _ALPHA_STD
