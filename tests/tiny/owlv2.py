"""A tiny OWLv2 or OWL-ViT as `google/owlv2-base-patch16-ensemble` is published: config.json, model.safetensors,
preprocessor_config.json and the tokenizer's files."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    PreTrainedModel,
)

from tests.tiny.tokenizers import clip_tokenizer

_FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "owlv2": (Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor),
    "owlvit": (OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor),
}


def save(folder: Path, model_type: str = "owlv2") -> dict[str, Any]:
    """Options for the saved model."""
    config_class, model_class, processor_class = _FAMILIES[model_type]
    tokenizer = clip_tokenizer(16)
    tokenizer.pad_token = "!"
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = config_class(
        text_config=layer
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config=layer | {"image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = model_class(config)
    _enliven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor_class(size={"height": 64, "width": 64}).save_pretrained(folder)
    return {"checkpoint": str(folder), "threshold": 0.3, "top": 100}


def _enliven(model: PreTrainedModel) -> None:
    """Fresh weights give all patches the same score whatever they are asked, and boxes of a patch's size: these do
    not."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif name == "box_head.dense2.bias":
                weight.copy_(torch.tensor([0, 0, 1, 1]))
