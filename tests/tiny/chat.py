"""A tiny chat model with random weights, as a checkpoint on disk that `transformers serve` loads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ["<|begin|>", "<|end|>"]
_TEMPLATE = """
{%- for message in messages %}<|begin|>{{ message['role'] }}
{{ message['content'] }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|begin|>assistant
{% endif %}"""


def build_chat_model(folder: Path) -> Path:
    """Saves a Llama of one layer, whose tokens are bytes and whose every answer is gibberish; returns the folder."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: k for k, token in enumerate(_SPECIAL + letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin, end = _SPECIAL
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin, eos_token=end, pad_token=end, chat_template=_TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(_SPECIAL) + len(letters),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32768,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
