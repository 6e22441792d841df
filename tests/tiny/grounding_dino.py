"""A tiny Grounding DINO (Swin, BERT and the fused encoder-decoder) as `IDEA-Research/grounding-dino-tiny` is published:
config.json, model.safetensors, preprocessor_config.json and the tokenizer's files."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    PreTrainedModel,
    SwinConfig,
)

from tests.tiny.tokenizers import bert_tokenizer

_FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "grounding-dino": (GroundingDinoConfig, GroundingDinoForObjectDetection, {}),
    "mm-grounding-dino": (
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False},
    ),
}


def save(folder: Path, model_type: str = "grounding-dino") -> dict[str, Any]:
    """Options for the saved model; `model_type` mm-grounding-dino is that of MM-Grounding-DINO and LLMDet."""
    tokenizer = _tokenizer()
    config_class, model_class, heads = _FAMILIES[model_type]
    torch.manual_seed(0)
    model = model_class(
        config_class(
            backbone_config=SwinConfig(
                embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=3, out_indices=[2, 3, 4]
            ),
            text_config=BertConfig(
                vocab_size=max(tokenizer.get_vocab().values()) + 1,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
            ),
            d_model=32,
            num_queries=20,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            **heads,
        )
    )
    _enliven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": 72, "longest_edge": 126}).save_pretrained(folder)
    return {"checkpoint": str(folder), "threshold": 0.02, "top": 100}


def _tokenizer() -> BertTokenizer:
    """Single characters, with the numbers of bert-base-uncased where the model knows them by number."""
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    others = [word for word in bert_tokenizer().get_vocab() if word not in fixed]
    return BertTokenizer(
        vocab=fixed | {word: 200 + k for k, word in enumerate(sorted(others))},
        model_max_length=512,
    )


def _enliven(model: PreTrainedModel) -> None:
    """Fresh weights give all queries the same box and score whatever they are asked: these do not."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif name.endswith(("vision_param", "text_param")):
                weight.fill_(1)
            elif "bbox_embed" in name and weight.shape == (4,):
                weight.copy_(torch.tensor([0, 0, 0.5, 0.5]))
            elif "text_enhancer_layer.layer_norm_after" in name and model.config.model_type == "grounding-dino":
                # Its logits are not divided by the root of the width, as the other's are.
                weight.mul_(0.2)
