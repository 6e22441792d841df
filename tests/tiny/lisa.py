"""A tiny LISA, saved as its authors publish it: config.json, shards pytorch_model-0000x-of-00002.bin of one state dict,
a sentencepiece tokenizer.model with added_tokens.json; and the CLIP model that is its vision tower, in a folder of its
own. Its answers are `[SEG]` at the first and the third place, then some other token until the limit."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.tiny import sam

_HIDDEN, _VISION, _SIDE, _PATCH = 32, 24, 32, 8
_SENTENCES = (
    "A chat between a curious human and an artificial intelligence assistant. USER: look at this image ASSISTANT:",
    "Which parts of this image does one have to look at to do the following? Please output segmentation mask.",
)


def save(folder: Path) -> dict[str, Any]:
    lisa, tower = folder / "lisa", folder / "clip"
    lisa.mkdir(exist_ok=True)
    _save_tower(tower)
    vocabulary, last = _save_tokenizer(lisa)
    weights = _weights(vocabulary, last)
    (lisa / "config.json").write_text(json.dumps(_config(vocabulary)))
    names = sorted(weights)
    index = {}
    for k, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"pytorch_model-{k:05}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, lisa / file)
        index |= dict.fromkeys(part, file)
    (lisa / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return {"checkpoint": str(lisa), "vision_tower": {"checkpoint": str(tower)}, "max_new_tokens": 5}


def _config(vocabulary: int) -> dict[str, Any]:
    """The fields of xinlai/LISA-7B-v1's config.json that say what the model is."""
    return {
        "architectures": ["LISAForCausalLM"],
        "model_type": "llava",
        "vocab_size": vocabulary,
        "hidden_size": _HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "mm_hidden_size": _VISION,
        "mm_use_im_start_end": True,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "vision_tower": "openai/clip-vit-large-patch14",
        "out_dim": sam.build().prompt_encoder.embed_dim,
        "train_mask_decoder": True,
    }


def _weights(vocabulary: int, last: int) -> dict[str, torch.Tensor]:
    segmenter = sam.build()
    torch.manual_seed(0)
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    fields = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    llama = LlamaForCausalLM(LlamaConfig(**{field: _config(vocabulary)[field] for field in fields}))
    weights = {name: 16 * value if "proj" in name else value for name, value in llama.state_dict().items()}
    weights["model.embed_tokens.weight"] = embedded = torch.randn(vocabulary, _HIDDEN)
    weights["lm_head.weight"] = head = torch.randn(vocabulary, _HIDDEN) / 10
    # After the question's last token comes [SEG], after it the token before it in the vocabulary, and after that one
    # [SEG] again or the end, which the rest of the context decides.
    seg, other, end = vocabulary - 3, vocabulary - 4, 2
    head[seg] += (embedded[last] + embedded[other]) / 2
    head[end] += embedded[other] * 0.8
    head[other] += embedded[seg] / 2
    weights["model.mm_projector.weight"] = torch.randn(_HIDDEN, _VISION) / 4
    weights["model.mm_projector.bias"] = torch.randn(_HIDDEN)
    for k, width in ((0, _HIDDEN), (2, segmenter.prompt_encoder.embed_dim)):
        weights[f"model.text_hidden_fcs.0.{k}.weight"] = torch.randn(width, _HIDDEN)
        weights[f"model.text_hidden_fcs.0.{k}.bias"] = torch.randn(width)
    for k in range(2):
        weights[f"model.layers.{k}.self_attn.rotary_emb.inv_freq"] = torch.ones(_HIDDEN // 4 // 2)
    for name, value in segmenter.state_dict().items():
        weights[f"model.visual_model.{name}"] = value
    return weights


def _save_tower(folder: Path) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": _VISION, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = CLIPTextConfig(**sizes, vocab_size=16, bos_token_id=1, eos_token_id=2)
    vision = CLIPVisionConfig(**sizes, image_size=_SIDE, patch_size=_PATCH)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    side = {"height": _SIDE, "width": _SIDE}
    CLIPImageProcessor(size={"shortest_edge": _SIDE}, crop_size=side).save_pretrained(folder)


def _save_tokenizer(folder: Path) -> tuple[int, int]:
    """Trains a sentencepiece model with Llama's settings. Returns how many tokens there are with the added ones, and
    the id of the last one of a question."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = processor.vocab_size()
    added = {"[SEG]": pieces, "<im_start>": pieces + 1, "<im_end>": pieces + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    settings = special | {"tokenizer_class": "LlamaTokenizer", "model_max_length": 512, "padding_side": "right"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return pieces + len(added), processor.encode(_SENTENCES[0])[-1]
