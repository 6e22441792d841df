"""Tiny SAM, SAM-HQ and SAM 2 models with the image processor of their family, saved by transformers.

SAM 2 is saved as its published checkpoints are: the video model's weights and config, model_type sam2_video.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamImageProcessor,
    SamModel,
)

_SIDE, _PATCH, _WIDTH = 128, 8, 32
_GRID = _SIDE // _PATCH
_VISION = {
    "hidden_size": 32,
    "output_channels": _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": _SIDE,
    "patch_size": _PATCH,
    "window_size": 3,
    "global_attn_indexes": [1],
    "num_pos_feats": _WIDTH // 2,
    "mlp_dim": 48,
}
_PROMPT = {
    "hidden_size": _WIDTH,
    "image_size": _SIDE,
    "patch_size": _PATCH,
    "image_embedding_size": _GRID,
    "mask_input_channels": 8,
}
_DECODER = {"hidden_size": _WIDTH, "mlp_dim": 48, "iou_head_hidden_dim": 24}


def save(folder: Path, family: str = "sam") -> dict[str, Any]:
    """`family` sam, sam_hq or sam2."""
    torch.manual_seed(3)
    model = {"sam": _sam, "sam_hq": _sam_hq, "sam2": _sam2}[family]()
    _stir(model)
    model.save_pretrained(folder)
    if family == "sam2":
        Sam2ImageProcessor(size={"height": _SIDE, "width": _SIDE}).save_pretrained(folder)
    else:
        SamImageProcessor(size={"longest_edge": _SIDE}, pad_size={"height": _SIDE, "width": _SIDE}).save_pretrained(
            folder
        )
    return {"name": "sam_hf", "checkpoint": str(folder)}


def _sam() -> PreTrainedModel:
    return SamModel(SamConfig(vision_config=_VISION, prompt_encoder_config=_PROMPT, mask_decoder_config=_DECODER))


def _sam_hq() -> PreTrainedModel:
    decoder = _DECODER | {"vit_dim": _VISION["hidden_size"]}
    return SamHQModel(SamHQConfig(vision_config=_VISION, prompt_encoder_config=_PROMPT, mask_decoder_config=decoder))


def _sam2() -> PreTrainedModel:
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [_SIDE, _SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 2, 2],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[_SIDE // 4] * 2, [_SIDE // 8] * 2, [_SIDE // 16] * 2],
        "fpn_hidden_size": _WIDTH,
    }
    memory = {
        "memory_attention_hidden_size": _WIDTH,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 32,
        "memory_attention_rope_feat_sizes": [_SIDE // 16] * 2,
        "memory_encoder_hidden_size": _WIDTH,
        "memory_encoder_output_channels": 16,
        "memory_fuser_embed_dim": _WIDTH,
        "memory_fuser_intermediate_dim": 32,
        "memory_fuser_num_layers": 1,
        "mask_downsampler_embed_dim": _WIDTH,
    }
    prompt = {"hidden_size": _WIDTH, "image_size": _SIDE, "patch_size": 16, "mask_input_channels": 8}
    return Sam2VideoModel(
        Sam2VideoConfig(
            vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=_DECODER, image_size=_SIDE, **memory
        )
    )


def _stir(model: PreTrainedModel) -> None:
    """Random weights of a size that masks and scores differ between prompts and between images."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.normal_(std=1 / parameter[0].numel() ** 0.5)
            elif "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.3)
        decoder = model.mask_decoder
        for name, parameter in decoder.named_parameters():
            if "proj.weight" in name:
                parameter *= 2
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight *= 30
        decoder.iou_prediction_head.proj_out.weight *= 0.3
        decoder.iou_prediction_head.proj_out.bias.fill_(0.6)
