"""What is asked of a language model: its settings, a question, its answer, and who can be asked."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, Self

from pydantic import Field, field_validator, model_validator

from experts.endpoint import EndpointOptions
from stages.base import Config

_SECRET = re.compile(r"://[^/?#]*:[^/?#]*@|[?&][^=&]*(?:key|secret|token|password|sas)[^=&]*=", re.IGNORECASE)
"""What a URI has of a key or password."""
_OURS = frozenset({"messages", "model", "n", "response_format", "stream"})
"""Fields of a request that `extra` cannot set: other values would make every answer unreadable."""


class Price(Config):
    """Money per million tokens, in any one currency; `batch` is the share of it that batch mode costs."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    batch: float = Field(0.5, ge=0, le=1)

    def of(self, input_tokens: float, output_tokens: float, batch: bool = False) -> float:
        """The money that so many tokens cost."""
        full = (input_tokens * self.input + output_tokens * self.output) / 1e6
        return full * self.batch if batch else full


class LlmConfig(EndpointOptions):
    """The language model of a profile, see `EndpointOptions`.

    Model: `temperature`, `max_tokens` of an answer, `extra` for whatever else the endpoint takes in a request's body.
    `structured` says how it is held to the schema: auto takes the strictest that the server accepts. With
    `image_pixels` the image goes along, with at most so many pixels.

    Traffic: `concurrency` questions in flight per worker; `requests_per_minute` and `tokens_per_minute` of the whole
    run; `retries` of one question after 429, 5xx or silence; `outage_minutes` for which an endpoint that is down is
    waited for. `batch` uses the endpoint's asynchronous batch interface.

    Money: `price`, and `budget` in its currency, which the run never exceeds. `answers` is where answers are kept for
    later runs, a folder or URI; by default the folder `answers` beside OUTPUT.
    """

    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int = Field(512, ge=16, le=32768)
    extra: dict[str, Any] = Field(default_factory=dict)
    structured: Literal["auto", "json_schema", "json_object", "text"] = "auto"
    image_pixels: int | None = Field(None, ge=32 * 32, le=4096 * 4096)
    concurrency: int = Field(32, ge=1, le=1000)
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    retries: int = Field(8, ge=0, le=50)
    outage_minutes: float = Field(60, ge=0)
    batch: bool = False
    price: Price | None = None
    budget: float | None = Field(None, ge=0)
    answers: str | None = None

    @property
    def most_output(self) -> int:
        """Tokens that an answer can have at most; `extra` wins over what it is sent with."""
        given = (self.extra.get(name) for name in ("max_tokens", "max_completion_tokens"))
        return max([self.max_tokens, *(most for most in given if isinstance(most, int))])

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        ours = _OURS & extra.keys()
        if ours:
            raise ValueError(f"'{min(ours)}' is for this package to set; remove it")
        return extra

    @field_validator("answers")
    @classmethod
    def _check_answers(cls, answers: str | None) -> str | None:
        # The profile goes into the run's record.
        if answers and _SECRET.search(answers):
            raise ValueError("it holds a key or password; give that to the storage in the environment instead")
        return answers

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.budget is not None and self.price is None:
            raise ValueError("'budget' needs 'price': money per million tokens")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the answers; all else may change without any row becoming stale."""
        return self.model_dump(include={"model", "temperature", "max_tokens", "extra", "image_pixels"})


@dataclass(frozen=True)
class Question:
    """One request to a chat model.

    `messages` are texts only, as the chat API takes them; `image` is a JPEG that goes into the last of them, or None.
    `answer` is the JSON schema of what is wanted, named `prompt` there; `identity` is `LlmConfig.identity()`.
    """

    prompt: str
    prompt_hash: str
    messages: tuple[dict[str, str], ...]
    answer: dict[str, Any]
    identity: dict[str, Any]
    image: bytes | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that decides the answer: two questions of one key are asked once."""
        image = hashlib.sha256(self.image).hexdigest() if self.image else None
        asked = [self.prompt_hash, self.messages, self.answer, self.identity, image]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def repaired(self, answer: str, problem: str) -> "Question":
        """The same question with its failed answer, and what was wrong with that."""
        more = ({"role": "assistant", "content": answer}, {"role": "user", "content": problem})
        return replace(self, messages=(*self.messages, *more))


@dataclass(frozen=True)
class Answer:
    """What a model said. `finish_reason` and `refusal` are the API's; `cached` if it was not asked now."""

    text: str
    finish_reason: str
    refusal: str | None
    input_tokens: int
    output_tokens: int
    cached: bool = False


class Asker(Protocol):
    """Gets questions answered."""

    async def ask(self, question: Question, anew: bool = False) -> Answer:
        """The answer, of the answer store where it has one and unless it is wanted `anew`, else of the endpoint.

        Raises:
            EndpointFailed: there is none, retries included.
            EndsRun: there will never be one, or the budget is spent.
        """


class Claim(NamedTuple):
    """The desk's word on a question: its `answer`; or, if None, ask it yourself if `wait` is 0, else claim it again
    after so many seconds, because another worker is asking it."""

    answer: Answer | None
    wait: float = 0.0


class Admission(NamedTuple):
    """Leave to send one request: after `wait` seconds, if `go`; else leave has to be asked for again then."""

    go: bool
    wait: float = 0.0


class Desk(Protocol):
    """What all workers of a run share: the answer store, the rate limit, the circuit breaker, the ledger."""

    async def claim(self, key: str, anew: bool = False) -> Claim:
        """Looks a question up; where it has no answer, or `anew`, makes it the caller's to ask."""

    async def admit(self, key: str, size: int) -> Admission:
        """Asks for leave to send a request of `size`, which bounds its input tokens: bytes of text, patches of image.

        Raises:
            BudgetSpent: it could cost more than is left, and nothing else is in flight.
            RunFailed: the endpoint has been down for longer than `outage_minutes`.
        """

    async def failed(self, key: str, down: bool) -> bool:
        """Reports a request without an answer; `down` if the endpoint looks dead (5xx, no connection, silence) and is
        not only busy (429). Returns whether it counts against the question's `retries`: while the endpoint is down
        only that of the one which tried it."""

    async def settle(self, question: Question, answer: Answer | None, requests: int) -> None:
        """Ends a claim: keeps the answer, or notes that there is none; `requests` is how many were sent for it."""
