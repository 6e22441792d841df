"""A small Grounding DINO as its authors publish them: a .pth of {"model": weights}, their names with the training's
`module.` and two of them left over; a config file; BERT's config and tokenizer. Swin-T and a width of 256 are the least
that the package can build, so half precision keeps the file small."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig

from experts.groundingdino_py import GroundingDinoPyOptions, build_model
from tests.tiny.tokenizers import bert_tokenizer

_CONFIG = """
# Keys and values as in GroundingDINO_SwinT_OGC.py, but for sizes.
batch_size = 1
modelname = "groundingdino"
backbone = "swin_T_224_1k"
position_embedding = "sine"
pe_temperatureH = 20
pe_temperatureW = 20
return_interm_indices = [1, 2, 3]
backbone_freeze_keywords = None
enc_layers = 1
dec_layers = 2
pre_norm = False
dim_feedforward = 32
hidden_dim = 256
dropout = 0.0
nheads = 4
num_queries = 20
query_dim = 4
num_patterns = 0
num_feature_levels = 4
enc_n_points = 4
dec_n_points = 4
two_stage_type = "standard"
two_stage_bbox_embed_share = False
two_stage_class_embed_share = False
transformer_activation = "relu"
dec_pred_bbox_embed_share = True
dn_box_noise_scale = 1.0
dn_label_noise_ratio = 0.5
dn_label_coef = 1.0
dn_bbox_coef = 1.0
embed_init_tgt = True
dn_labelbook_size = 2000
max_text_len = 256
text_encoder_type = "bert-base-uncased"
use_text_enhancer = True
use_fusion_layer = True
use_checkpoint = True
use_transformer_ckpt = True
use_text_cross_attention = True
text_dropout = 0.0
fusion_dropout = 0.0
fusion_droppath = 0.1
sub_sentence_present = True
"""


def save(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder / "bert")
    BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    ).save_pretrained(folder / "bert")
    (folder / "config.py").write_text(_CONFIG)
    options = {
        "checkpoint": str(folder / "groundingdino.pth"),
        "config": str(folder / "config.py"),
        "text_encoder": {"checkpoint": str(folder / "bert")},
        "short_side": 64,
        "threshold": 0.05,
        "top": 100,
    }
    segmenter = {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}
    model = build_model(GroundingDinoPyOptions(**options, segmenter=segmenter))
    _enliven(model)
    weights = {f"module.{name}": weight.half() for name, weight in model.state_dict().items()}
    weights["module.label_enc.weight"] = torch.zeros(4, 256)
    weights["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model": weights}, folder / "groundingdino.pth")
    return options


def _enliven(model: torch.nn.Module) -> None:
    """Fresh weights give all queries nearly the same box and score whatever they are asked: these do not."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "backbone" not in name and weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif name.endswith(("gamma_v", "gamma_l")):
                weight.fill_(1)
            elif "text_layers" in name and "norm2" in name:
                # Logits are dot products of 256 values, and would all be far from 0.
                weight.mul_(0.03)
