"""A tiny Segment Anything, saved as segment-anything publishes its checkpoints: one flat state dict in a .pth file."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

_WIDTH = 32


def build(image_side: int = 128, patch: int = 8, width: int = 32, depth: int = 2) -> Sam:
    """Random weights of a fixed seed, scaled so that masks and scores differ between prompts and between images.

    The sizes are the image encoder's.
    """
    grid = image_side // patch
    torch.manual_seed(3)
    model = Sam(
        ImageEncoderViT(
            depth=depth,
            embed_dim=width,
            img_size=image_side,
            mlp_ratio=2,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2,
            patch_size=patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=[1],
            window_size=3,
            out_chans=_WIDTH,
        ),
        PromptEncoder(_WIDTH, (grid, grid), (image_side, image_side), mask_in_chans=8),
        MaskDecoder(
            transformer=TwoWayTransformer(depth=2, embedding_dim=_WIDTH, num_heads=8, mlp_dim=48),
            transformer_dim=_WIDTH,
            iou_head_hidden_dim=24,
        ),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.3)
            elif parameter.dim() > 1 and "embed" not in name:
                parameter.normal_(std=(2 if "_proj" in name else 1) / parameter[0].numel() ** 0.5)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 30
        model.mask_decoder.iou_prediction_head.layers[-1].weight *= 0.3
        model.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(0.6)
    return model.eval()


def save(folder: Path, **sizes: int) -> dict[str, Any]:
    path = folder / "sam_tiny.pth"
    torch.save(build(**sizes).state_dict(), path)
    return {"name": "sam", "checkpoint": str(path)}
