"""Expert `florence2`: a phrase's mask, as Florence-2 writes it down in polygons."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from pydantic import Field
from transformers import Florence2ForConditionalGeneration, Florence2Processor
from transformers.modeling_outputs import BaseModelOutput

from experts.base import Candidate, Placement, Scene, per_request, unique_texts
from experts.model import ModelOptions, TorchExpert, load_pretrained, load_processor

_TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"


class Florence2Options(ModelOptions):
    """`beams` of the beam search, 1 is greedy; `tokens` an answer may have at most, two for each polygon point."""

    beams: int = Field(3, ge=1, le=10)
    tokens: int = Field(1024, ge=16, le=1024)


class Florence2(TorchExpert):
    """Florence-2 (Xiao et al., CVPR 2024), its referring expression segmentation task: an image and a phrase give a
    text of location tokens, 1000 to a side, which are the corners of polygons.

    All polygons of an answer are one mask, since a phrase has one answer; a text without polygons is no candidate. The
    model has no confidence of its own: the score is the geometric mean of the probabilities of the answer's tokens.
    """

    summary = "one mask per phrase, from the polygons that Florence-2 writes"
    limits = "always answers, whether the thing is there or not; slow, since it writes token by token"
    needs = ("torch", "transformers")
    Options = Florence2Options
    options: Florence2Options

    def __init__(self, options: Florence2Options, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.model = load_pretrained(Florence2ForConditionalGeneration, options, self.torch_device)
        self.processor = load_processor(Florence2Processor, options)

    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        phrases = [unique_texts(scene.requests, "phrases") for scene in scenes]
        asked = [k for k in range(len(scenes)) if phrases[k]]
        encoded = self.batches.map(self._encode, [scenes[k].image for k in asked])
        features = dict(zip(asked, encoded, strict=True))
        pairs = [(k, phrase) for k in asked for phrase in phrases[k]]
        answers = self.batches.map(self._answer, [(features[k], phrase) for k, phrase in pairs])
        found: list[dict[str, list[Candidate]]] = [{} for _ in scenes]
        for (k, phrase), (text, score) in zip(pairs, answers, strict=True):
            mask = self._mask(text, *scenes[k].image.shape[:2])
            found[k][phrase] = [Candidate(mask, score, phrase)] if mask.any() else []
        return [per_request(scene.requests, "phrases", found[k]) for k, scene in enumerate(scenes)]

    def _encode(self, images: list[np.ndarray]) -> list[torch.Tensor]:
        """Each image's tokens, (tokens, width of the language model)."""
        inputs = self.processor.image_processor(images, return_tensors="pt", input_data_format="channels_last")
        pixels = inputs["pixel_values"].to(self.torch_device, self.model.dtype)
        return list(self.model.get_image_features(pixels).pooler_output)

    def _answer(self, pairs: list[tuple[torch.Tensor, str]]) -> list[tuple[str, float]]:
        """Text and score for each pair of image tokens and phrase."""
        features = torch.stack([tokens for tokens, _ in pairs])
        room = self.model.config.text_config.max_position_embeddings - features.shape[1]
        prompts = self.processor.tokenizer.pad(
            {"input_ids": [self._prompt(phrase, room) for _, phrase in pairs]},
            padding_side="right",
            return_tensors="pt",
        ).to(self.torch_device)
        # Image tokens stand before the prompt's, so that they need no placeholders there.
        embedded = torch.cat([features, self.model.get_input_embeddings()(prompts["input_ids"])], dim=1)
        attended = torch.cat([prompts["attention_mask"].new_ones(features.shape[:2]), prompts["attention_mask"]], dim=1)
        read = self.model.get_encoder()(inputs_embeds=embedded, attention_mask=attended).last_hidden_state
        sequences = self.model.generate(
            # `generate` changes what it is given: repeats it once per beam.
            encoder_outputs=BaseModelOutput(last_hidden_state=read),
            attention_mask=attended,
            num_beams=self.options.beams,
            do_sample=False,
            max_new_tokens=min(self.options.tokens, self.model.config.text_config.max_position_embeddings),
        )
        texts = self.processor.batch_decode(sequences, skip_special_tokens=False)
        return list(zip(texts, self._scores(read, attended, sequences), strict=True))

    def _prompt(self, phrase: str, room: int) -> list[int]:
        """Token ids, at most `room`; of a phrase that is too long the end is left out, not of the words around it."""
        tokenizer = self.processor.tokenizer
        words = self.processor.task_prompts_with_input[_TASK]
        text = tokenizer.bos_token + words.format(input=phrase.strip()) + tokenizer.eos_token
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) <= room:
            return tokens
        after = words.partition("{input}")[2] + tokenizer.eos_token
        ending = len(tokenizer(after, add_special_tokens=False)["input_ids"])
        return tokens[: room - ending] + tokens[-ending:]

    def _scores(self, read: torch.Tensor, attended: torch.Tensor, sequences: torch.Tensor) -> list[float]:
        """Geometric mean over each sequence's tokens, padding apart, of their probability after those before them.

        In one pass more, rather than kept from generation, where they would be one value per step, beam and word.
        """
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=read),
            attention_mask=attended,
            decoder_input_ids=sequences[:, :-1],
            use_cache=False,
        ).logits
        written = sequences[:, 1:]
        padding = self.model.generation_config.pad_token_id
        surprise = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), written, ignore_index=padding, reduction="none"
        )
        return torch.exp(-surprise.sum(1) / (written != padding).sum(1)).tolist()

    def _mask(self, text: str, height: int, width: int) -> np.ndarray:
        answer = self.processor.post_process_generation(text=text, task=_TASK, image_size=(width, height))[_TASK]
        mask = np.zeros((height, width), np.uint8)
        for polygon in (polygon for polygons in answer["polygons"] for polygon in polygons):
            points = np.array(polygon, np.int32).reshape(-1, 2)
            if len(points) >= 3:
                # One by one: in one call, where two polygons overlap would count as outside of both.
                cv2.fillPoly(mask, [points], 1)
        return mask.astype(bool)
