"""Tokenizers of the real classes, whose vocabulary is single characters, for the checkpoints of tiny models."""

from string import ascii_lowercase, digits

from transformers import BertTokenizer, CLIPTokenizer

_CHARACTERS = ascii_lowercase + digits + ".,?!'\"-:;()/"


def bert_tokenizer() -> BertTokenizer:
    """WordPiece, lower-casing; ids of the special tokens as in bert-base-uncased's order, not its numbers."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_CHARACTERS, *(f"##{letter}" for letter in _CHARACTERS)]
    return BertTokenizer(vocab={word: k for k, word in enumerate(words)}, model_max_length=512)


def clip_tokenizer(length: int = 77) -> CLIPTokenizer:
    """Byte-pair encoding without merges; padding is the end token, as in OpenAI's checkpoints."""
    words = [*_CHARACTERS, *(f"{letter}</w>" for letter in _CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: k for k, word in enumerate(words)}, merges=[], model_max_length=length)
