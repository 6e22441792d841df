"""A tiny CLIPSeg as `CIDAS/clipseg-rd64-refined` is saved: its switches, its preprocessing, a map larger than the
pictures that its position embeddings were made for."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from tests.tiny.tokenizers import clip_tokenizer


def save(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPSegConfig(
        # As published: with 2, the end of a text is where its highest token id is.
        text_config={"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, **size},
        vision_config={"image_size": 32, "patch_size": 8, **size},
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessing = {
        "feature_extractor_type": "ViTImageProcessor",
        "processor_class": "CLIPSegProcessor",
        "size": {"height": 48, "width": 48},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return {"checkpoint": str(folder), "threshold": 0.5}


def _spread(model: CLIPSegForImageSegmentation) -> None:
    """Weights for which the map depends on phrase and place; with the initial ones it is 0.5 everywhere."""
    growth = {"text_model.embeddings": 30, "film": 3, "reduces": 0.3, "transposed_convolution": 0.5}
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim > 1:
                weights.mul_(next((growth[part] for part in growth if part in name), 3))
