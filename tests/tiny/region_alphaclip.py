"""A tiny AlphaCLIP: a CLIP checkpoint by transformers, and a .pth of its image encoder in the model zoo's layout."""

from pathlib import Path
from typing import Any

import torch

from tests.tiny import region_clip

WIDTH, LAYERS, HEADS, PATCH, GRID, EMBEDDING = 32, 2, 2, 8, 4, 24


def save(folder: Path) -> dict[str, Any]:
    """Options for the saved model."""
    options = region_clip.save(folder / "clip")
    torch.manual_seed(1)
    torch.save(_visual(), folder / "alpha.pth")
    return {**options, "alpha_checkpoint": str(folder / "alpha.pth")}


def _visual() -> dict[str, torch.Tensor]:
    """State dict of `visual` in alpha_clip/model.py, drawn at random."""

    def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.randn(rows, columns) * 0.3, f"{name}.bias": torch.randn(rows) * 0.1}

    def layer_norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + torch.randn(WIDTH) * 0.1, f"{name}.bias": torch.randn(WIDTH) * 0.1}

    weights = {
        "class_embedding": torch.randn(WIDTH),
        "positional_embedding": torch.randn(GRID**2 + 1, WIDTH),
        "proj": torch.randn(WIDTH, EMBEDDING),
        "conv1.weight": torch.randn(WIDTH, 3, PATCH, PATCH) * 0.1,
        "conv1_alpha.weight": torch.randn(WIDTH, 1, PATCH, PATCH) * 0.3,
        **layer_norm("ln_pre"),
        **layer_norm("ln_post"),
    }
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}"
        weights |= linear(f"{block}.attn.in_proj", 3 * WIDTH, WIDTH) | linear(f"{block}.attn.out_proj", WIDTH, WIDTH)
        weights |= layer_norm(f"{block}.ln_1") | layer_norm(f"{block}.ln_2")
        weights |= linear(f"{block}.mlp.c_fc", 2 * WIDTH, WIDTH) | linear(f"{block}.mlp.c_proj", WIDTH, 2 * WIDTH)
    return weights
