"""A tiny SAM from which the discriminator `ivm` learns: its decoder and mask prompt are of a trained one's scale."""

from pathlib import Path

import torch
from torch import nn
from transformers import SamModel

from tests.tiny import sam_hf


def save_sam(folder: Path) -> str:
    """Saves it with its image processor; returns the folder as a checkpoint's name."""
    checkpoint = sam_hf.save(folder)["checkpoint"]
    model = SamModel.from_pretrained(checkpoint)
    torch.manual_seed(0)
    for part, gain in ((model.mask_decoder.transformer, 1.0), (model.prompt_encoder.mask_embed, 1.5)):
        for layer in part.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, gain)
                nn.init.zeros_(layer.bias)
    model.save_pretrained(folder)
    return checkpoint
