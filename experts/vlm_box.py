"""Expert `vlm_box`: boxes for a whole instruction, asked of any vision language model behind an OpenAI-compatible
endpoint (the role of VisCoT in the paper), and a segmenter that turns them into masks."""

import base64
import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal, cast

import cv2
import numpy as np
import openai
from openai.types.chat import ChatCompletion
from pydantic import Field, ValidationInfo, field_validator

from experts.base import ExpertOptions, Placement
from experts.coordinates import Convention, UnreadableAnswer, View, convention_of, parse_boxes, view_of
from experts.detector import Detection, DetectorExpert, DetectorOptions
from experts.endpoint import EndpointOptions, read_key, reason, refusal
from experts.model import weights_ids
from pipeline.errors import EndpointFailed, InputError
from prompts.loader import load_prompt

_PROMPT = "vlm_box"
_NO_SCORE = 0.5
_REMEMBERED = 10_000
"""Answers kept before all are forgotten: of far more questions than a batch of images has."""


class VlmBoxOptions(EndpointOptions, DetectorOptions):
    """`coordinates` is the convention of the model's boxes, see `experts/coordinates.py`; auto goes by its name.
    Images are sent with at most `max_pixels`; where the convention is pixels, the server's own limit must not be less.
    `logprobs` asks for token probabilities, for scores (vLLM and OpenAI give them). `concurrency` questions are asked
    at a time, for which as many images are held, each with `retries` after 429, 5xx or `timeout` seconds of silence.
    """

    whereabouts: ClassVar[frozenset[str]] = frozenset({"base_url", "api_key_env", "concurrency", "retries", "timeout"})

    coordinates: Literal["auto", "pixels", "thousand", "unit", "unit_square"] = Field("auto", validate_default=True)
    max_pixels: int = Field(1280 * 28**2, ge=768 * 28**2, le=16384 * 28**2)
    max_tokens: int = Field(1024, ge=32, le=32768)
    logprobs: bool = False
    concurrency: int = Field(8, ge=1, le=64)
    retries: int = Field(5, ge=0, le=20)

    @property
    def convention(self) -> Convention:
        return cast(Convention, self.coordinates)

    @field_validator("coordinates")
    @classmethod
    def _resolve(cls, coordinates: str, info: ValidationInfo) -> str:
        if coordinates != "auto" or "model" not in info.data:
            return coordinates
        found = convention_of(info.data["model"])
        if found is None:
            raise ValueError(
                f"how model '{info.data['model']}' counts coordinates is not known; give pixels, thousand, unit or "
                "unit_square"
            )
        return found


class VlmBox(DetectorExpert):
    """One question per different instruction of an image; each image is encoded for sending once.

    Boxes come in the model's order of importance. Where the endpoint gives token probabilities (`logprobs`) all boxes
    of an answer score the mean probability of its tokens; else 0.5, which says nothing and is above any `threshold`
    that makes sense. A question without a readable answer costs its image: it never counts as "nothing there".
    """

    summary = "boxes for the whole instruction from any OpenAI-compatible vision endpoint, then a segmenter"
    limits = "as good as the model; scores only where the server gives logprobs; the server must take temperature 0"
    needs = ("openai", "transformers")
    asks = "instruction"
    Options = VlmBoxOptions
    options: VlmBoxOptions

    def __init__(self, options: VlmBoxOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.prompt = load_prompt(_PROMPT).body
        self.key = read_key(options.api_key_env)
        self.client = openai.OpenAI(
            base_url=options.base_url, api_key=self.key, max_retries=options.retries, timeout=options.timeout
        )
        # When one image of several fails the stage tries each alone: the others' answers are not paid for twice.
        self.answers: dict[bytes, tuple[str, float]] = {}

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        assert isinstance(options, VlmBoxOptions)
        asked = f"{options.model} ({options.convention}, prompt {load_prompt(_PROMPT).hash})"
        return f"vlm_box-{cls.code_version} {asked} + {weights_ids(options)}"

    @property
    def images_at_once(self) -> int:
        return max(super().images_at_once, self.options.concurrency)

    def detect(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[list[list[Detection]]]:
        views = [view_of(image, self.options.convention, self.options.max_pixels) for image in images]
        urls = [_data_url(view.pixels) for view in views]
        if len(self.answers) > _REMEMBERED:
            self.answers.clear()
        # Left only when all questions are answered or failed: what was paid for is remembered.
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            pending = [
                [pool.submit(self._answer, url, self._question(text, view)) for text in of_image]
                for url, view, of_image in zip(urls, views, texts, strict=True)
            ]
        return [
            [_detections(*future.result(), view) for future in of_image]
            for view, of_image in zip(views, pending, strict=True)
        ]

    def _question(self, instruction: str, view: View) -> str:
        height, width = view.pixels.shape[:2]
        coordinates = self.prompt["coordinates"][self.options.convention].format(width=width, height=height)
        return self.prompt["question"].format(instruction=instruction, coordinates=coordinates)

    def _answer(self, url: str, question: str) -> tuple[str, float]:
        """The model's answer and its score, asked for once."""
        # The image itself, some 300 kB, is not kept.
        key = hashlib.sha256(f"{url} {question}".encode()).digest()
        if key not in self.answers:
            self.answers[key] = self._ask(url, question)
        return self.answers[key]

    def _ask(self, url: str, question: str) -> tuple[str, float]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        try:
            completion = self.client.chat.completions.create(
                model=self.options.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
                temperature=0,
                max_tokens=self.options.max_tokens,
                # Some servers refuse the field whatever its value.
                logprobs=True if self.options.logprobs else openai.omit,
            )
        # Their causes may hold the key or the whole request, image included: not chained.
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise InputError(refusal(self.options, error)) from None
        except (openai.OpenAIError, ValueError) as error:
            raise EndpointFailed(f"{self.options.where}: {reason(error, self.key)}") from None
        return self._read(completion)

    def _read(self, completion: ChatCompletion) -> tuple[str, float]:
        # Not validated by the client: an error page with status 200 comes as a string.
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise EndpointFailed(f"{self.options.where}: the answer is no chat completion; does base_url end in /v1?")
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise UnreadableAnswer(f"the answer was cut off after {self.options.max_tokens} tokens; raise 'max_tokens'")
        if choice.message.refusal or not choice.message.content:
            why = choice.message.refusal or f"an empty answer, finish reason {choice.finish_reason}"
            raise UnreadableAnswer(f"the model refused: {why[:200]}")
        if not self.options.logprobs:
            return choice.message.content, _NO_SCORE
        if choice.logprobs is None or not choice.logprobs.content:
            raise InputError(f"{self.options.where} gives no token probabilities; set option 'logprobs' to false")
        mean = float(np.mean([token.logprob for token in choice.logprobs.content]))
        return choice.message.content, min(1.0, math.exp(mean))


def _data_url(pixels: np.ndarray) -> str:
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _detections(answer: str, score: float, view: View) -> list[Detection]:
    placed = (view.place(box) for box in parse_boxes(answer))
    return [Detection(box, score) for box in placed if box is not None]
