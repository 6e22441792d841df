"""A tiny LLaVA saved as llava-hf/llava-1.5-* are published: config.json, model.safetensors, processor and tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

_SIDE, _PATCH = 32, 8
_SPECIAL = ["<s>", "</s>", "<pad>", "<image>"]


def save(folder: Path) -> str:
    """Saves it; returns the folder as a checkpoint's name. Tokens are bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={token: k for k, token in enumerate(_SPECIAL + letters)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    begin, end, padding, image = _SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=begin,
        eos_token=end,
        pad_token=padding,
        additional_special_tokens=[image],
        extra_special_tokens={"image_token": image},
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}),
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(hidden_size=24, image_size=_SIDE, patch_size=_PATCH, **sizes)
    llama = LlamaConfig(hidden_size=32, vocab_size=len(tokenizer), **sizes)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=llama, image_token_index=tokenizer.convert_tokens_to_ids(image))
    )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "position" not in name:
                # Larger, so that other inputs give clearly other states.
                value *= 8
    model.save_pretrained(folder)
    return str(folder)
