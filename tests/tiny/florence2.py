from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    BartTokenizer,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
)
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

SIDE, IMAGE_TOKENS, POSITIONS = 32, 17, 128


def save(folder: Path) -> dict[str, Any]:
    """As transformers' conversion script writes it: DaViT and BART, a byte-level tokenizer to which location tokens are
    added, the processor with its post-processor, and the published generation settings."""
    processor = _processor()
    model = _model(processor.tokenizer)
    model.generation_config.update(
        bos_token_id=0,
        decoder_start_token_id=2,
        early_stopping=True,
        eos_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        no_repeat_ngram_size=3,
        num_beams=3,
        pad_token_id=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {"checkpoint": str(folder), "tokens": 24}


def _processor() -> Florence2Processor:
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "<mask>"]
    tokenizer = BartTokenizer(
        vocab={word: k for k, word in enumerate(words)},
        merges=[],
        model_max_length=1024,
        extra_special_tokens={"image_token": "<image>"},
    )
    tokenizer.add_tokens(
        [AddedToken(f"<loc_{k}>", special=True, normalized=False) for k in range(1000)]
        + [AddedToken(word, special=True, normalized=False) for word in ("<sep>", "<poly>", "</poly>")],
        special_tokens=True,
    )
    image_processor = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_seq_length=IMAGE_TOKENS,
    )
    return Florence2Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        post_processor_config={"pure_text": {}, "polygons": {}, "bboxes": {}},
    )


def _model(tokenizer: BartTokenizer) -> Florence2ForConditionalGeneration:
    torch.manual_seed(0)
    vision = Florence2VisionConfig(
        depths=(1, 1),
        patch_size=(7, 3),
        patch_stride=(4, 2),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        embed_dim=(16, 32),
        num_heads=(2, 4),
        num_groups=(2, 4),
        window_size=2,
        projection_dim=32,
        max_position_embeddings=8,
        initializer_range=0.3,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=POSITIONS,
        init_std=0.3,
    )
    config = Florence2Config(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=tokenizer.image_token_id
    )
    model = Florence2ForConditionalGeneration(config).eval()
    _favour_polygons(model, tokenizer)
    return model


def _favour_polygons(model: Florence2ForConditionalGeneration, tokenizer: BartTokenizer) -> None:
    """Makes random weights write location tokens: the decoder's last bias points along one dimension, on which their
    embeddings, which are the output layer's weights, are large."""
    words = [f"<loc_{k}>" for k in range(1000)]
    with torch.no_grad():
        decoder = model.model.language_model.decoder
        decoder.layers[-1].final_layer_norm.bias[0] = 4.0
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = 0
        embeddings[tokenizer.convert_tokens_to_ids(words), 0] = 1.0
        embeddings[tokenizer.convert_tokens_to_ids("<sep>"), 0] = 2.0
