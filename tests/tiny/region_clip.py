"""Tiny dual encoders as openai/clip-vit-*, google/siglip-* and google/siglip2-*-naflex are published: config.json,
model.safetensors, preprocessor_config.json and the tokenizer's files."""

from io import BytesIO
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import sentencepiece
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

from tests.tiny.tokenizers import clip_tokenizer

_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(folder: Path, model_type: str = "clip") -> dict[str, Any]:
    """Options for the saved model, of `model_type` clip, siglip or siglip2 (the one that keeps the aspect ratio)."""
    torch.manual_seed(0)
    {"clip": _save_clip, "siglip": _save_siglip, "siglip2": _save_siglip2}[model_type](folder)
    return {
        "checkpoint": str(folder),
        "proposals": {"points_per_side": 2, "pred_iou_threshold": 0.0, "stability_threshold": 0.0},
        "top": 100,
        "threshold": 0.0,
    }


def _save_clip(folder: Path) -> None:
    tokenizer = clip_tokenizer(length=77)
    text = {**_SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**_SIZE, "image_size": 32, "patch_size": 8}
    _spread(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def _save_siglip(folder: Path) -> None:
    # The published tokenizer gives no attention mask: the model reads the padding too.
    tokenizer = SiglipTokenizer(str(_sentencepiece(folder)), model_input_names=["input_ids"])
    text = {**_SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    vision = {**_SIZE, "image_size": 32, "patch_size": 8}
    _spread(SiglipModel(SiglipConfig(text_config=text, vision_config=vision))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def _save_siglip2(folder: Path) -> None:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *ascii_lowercase, *digits]
    tokenizer = Siglip2Tokenizer(vocab={word: k for k, word in enumerate(words)}, model_input_names=["input_ids"])
    text = {**_SIZE, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    vision = {**_SIZE, "num_patches": 16, "patch_size": 8}
    _spread(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(folder)


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    """Larger weights, so that different inputs have clearly different embeddings, and the published models' scale."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "position" not in name:
            weight.data *= 4
    model.logit_scale.data.fill_(1.5)
    if hasattr(model, "logit_bias"):
        model.logit_bias.data.fill_(-1.0)
    return model


def _sentencepiece(folder: Path) -> Path:
    trained = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"a photo of {letter}{digit}" for letter in ascii_lowercase for digit in digits]),
        model_writer=trained,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(exist_ok=True)
    path = folder / "spiece.model"
    path.write_bytes(trained.getvalue())
    return path
