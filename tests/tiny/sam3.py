from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPTextConfig,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Processor,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoModel,
)

from tests.tiny.tokenizers import clip_tokenizer

SIDE, WIDTH = 56, 32


def save(folder: Path) -> dict[str, Any]:
    """As facebook/sam3 is published: the weights and the config of the video model, of which the image model is the
    part called detector."""
    tokenizer = clip_tokenizer(length=32)
    detector = _detector(len(tokenizer))
    torch.manual_seed(1)
    model = Sam3VideoModel(Sam3VideoConfig(detector_config=detector.to_dict(), tracker_config=_tracker(detector)))
    _spread(model.detector_model)
    model.save_pretrained(folder)
    sizes = {"size": {"height": SIDE, "width": SIDE}, "mask_size": {"height": SIDE // 14 * 4, "width": SIDE // 14 * 4}}
    Sam3Processor(Sam3ImageProcessor(**sizes), tokenizer).save_pretrained(folder)
    return {"checkpoint": str(folder), "threshold": 0.1}


def _detector(words: int) -> Sam3Config:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "pretrain_image_size": SIDE // 2,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    layers = {"hidden_size": WIDTH, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": WIDTH}
    return Sam3Config(
        vision_config={
            "backbone_config": backbone,
            "fpn_hidden_size": WIDTH,
            "backbone_feature_sizes": [[SIDE // 14 * scale] * 2 for scale in (4, 2, 1)],
        },
        text_config=text.to_dict(),
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 20},
        mask_decoder_config={"hidden_size": WIDTH, "num_attention_heads": 2},
    )


def _tracker(detector: Sam3Config) -> dict[str, Any]:
    config = Sam3TrackerVideoConfig(
        vision_config=detector.vision_config.to_dict(),
        prompt_encoder_config={"hidden_size": WIDTH},
        mask_decoder_config={"hidden_size": WIDTH, "mlp_dim": WIDTH, "num_attention_heads": 2},
        memory_attention_hidden_size=WIDTH,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=WIDTH,
        memory_encoder_hidden_size=WIDTH,
        memory_encoder_output_channels=WIDTH // 2,
        mask_downsampler_embed_dim=WIDTH,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=WIDTH,
        memory_fuser_intermediate_dim=WIDTH,
        image_size=SIDE,
    )
    return config.to_dict()


def _spread(model: torch.nn.Module) -> None:
    """Makes random weights matter, which are initialised so small that all queries of all images are alike."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(8.0)
