"""Asks a language model behind an OpenAI-compatible endpoint, and goes on asking where another try can help."""

import asyncio
import base64
import json
import random
import re
import time
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai
from pydantic import BaseModel, Field, ValidationError

from experts.endpoint import no_credit, read_key, reason, refusal
from pipeline.errors import EndpointFailed, InputError
from stages.llm import Answer, Desk, LlmConfig, Question

Mode = Literal["json_schema", "json_object", "text"]
"""How an answer is held to its schema, `response_format` of the API; a text is not."""

MODES: tuple[Mode, ...] = ("json_schema", "json_object", "text")
MOST_TOKENS = 2**31 - 1
"""An answer that is said to have taken more is no answer: the column of the samples table is an int32."""
IMAGE_PATCH = 8
"""Pixels of which no model that we know makes more than one token: LLaVA-1.5 has 196, and GPT-4o mini, which counts
most, some 10 where its tiles fit badly."""
MAX_RETRY_AFTER = 300.0
MAX_BACKOFF = 60.0
"""Seconds that are waited at most, where the server names a time and where it does not."""

_FILTERED = {"content_filter", "content_policy_violation"}
_NOT_TAKEN = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(0, ge=0, le=MOST_TOKENS)
    completion_tokens: int = Field(0, ge=0, le=MOST_TOKENS)


class _Completion(BaseModel):
    """The part of a completion that is read, https://platform.openai.com/docs/api-reference/chat/object."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def answer_of(body: object) -> Answer | None:
    """The answer in the body of a chat completion, parsed or as JSON text; None if it is none.

    Tokens are the server's count, 0 where it gives none. A message without content is the empty text.
    """
    try:
        found = (
            _Completion.model_validate_json(body) if isinstance(body, str | bytes) else _Completion.model_validate(body)
        )
    except ValidationError:
        return None
    choice, usage = found.choices[0], found.usage or _Usage()
    return Answer(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason or "",
        refusal=choice.message.refusal,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )


def request_body(config: LlmConfig, question: Question, mode: Mode) -> dict[str, Any]:
    """The JSON body of a chat completions request.

    What `extra` holds goes in as it is and wins; its nulls take a field out. The messages have to say what form the
    answer has: in the modes below json_schema nothing else does.
    """
    *before, last = question.messages
    content: str | list[dict[str, Any]] = last["content"]
    if question.image:
        url = f"data:image/jpeg;base64,{base64.b64encode(question.image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": content}]
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [*before, {**last, "content": content}],
        "temperature": config.temperature,
    }
    # The newest models of OpenAI take nothing but the new name, most servers nothing but the old one.
    if "max_completion_tokens" not in config.extra:
        body["max_tokens"] = config.max_tokens
    if mode == "json_schema":
        schema = {"name": question.prompt, "schema": question.answer, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif mode == "json_object":
        body["response_format"] = {"type": "json_object"}
    return {name: value for name, value in (body | config.extra).items() if value is not None}


class _NoAnswer(Exception):
    """A request that another one may make good: after `wait` seconds if the server said so; `down` as for a desk."""

    def __init__(self, why: str, down: bool = False, wait: float | None = None) -> None:
        super().__init__(why)
        self.down = down
        self.wait = wait


class _NotTaken(Exception):
    """The server took the request for a bad one (400, 422)."""


class _Ladder:
    """The modes for one prompt: tried downwards until one works, which is then the only one.

    A bad request in a mode that has worked is the question's fault; without that memory one question that is too long
    would cost all others their schema.
    """

    def __init__(self, modes: tuple[Mode, ...]) -> None:
        self._modes = modes
        self._first = 0
        self._proven: int | None = None

    def first(self) -> Mode:
        """The mode to begin a question with."""
        return self._modes[self._first]

    def worked(self, mode: Mode) -> None:
        """Notes that a question was answered in this mode."""
        at = self._modes.index(mode)
        self._proven = at if self._proven is None else min(at, self._proven)
        self._first = self._proven

    def below(self, mode: Mode) -> Mode | None:
        """The mode to try after a bad request in this one, None if no mode would mend it."""
        at = self._modes.index(mode)
        if self._proven is not None and self._proven <= at:
            return None
        if at + 1 == len(self._modes):
            self._first = 0
            return None
        self._first = max(self._first, at + 1)
        return self._modes[self._first]


@dataclass
class _Asking:
    """Where a question stands: `requests` were sent for it, `failures` of them count; `mode` is the one of its own that
    it has after a bad request."""

    question: Question
    anew: bool
    ladder: _Ladder
    mode: Mode | None = None
    claimed: bool = False
    requests: int = 0
    failures: int = 0


class EndpointAsker:
    """The `Asker` of one worker, for one event loop.

    At most `concurrency` questions are being admitted or in flight; a place is taken in the order of asking, and given
    back while a question waits for another worker's answer or for its next try. A question that waits for the run's
    rate limit keeps its place: the limit is what holds it then, and no more than `concurrency` ask the desk for leave.
    """

    def __init__(self, config: LlmConfig, desk: Desk) -> None:
        self.config = config
        self.desk = desk
        self.key = read_key(config.api_key_env)
        # Its pool holds 1,000 connections, which is the most that `concurrency` can be.
        self.client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=self.key, max_retries=0, timeout=config.timeout
        )
        self._modes = MODES if config.structured == "auto" else (config.structured,)
        self._ladders: dict[str, _Ladder] = {}
        self._places = asyncio.Semaphore(config.concurrency)
        self._running: dict[tuple[str, bool], asyncio.Task[Answer]] = {}

    async def ask(self, question: Question, anew: bool = False) -> Answer:
        """The answer, see `Asker`; of equal questions asked at a time one is sent, the others' answers are `cached`."""
        name = (question.key, anew)
        while twin := self._running.get(name):
            await asyncio.wait([twin])
            if not twin.cancelled():
                return replace(twin.result(), cached=True)
        task = asyncio.create_task(self._answered(question, anew))
        self._running[name] = task
        # Before the callbacks of those who wait for it: none finds a task that is over.
        task.add_done_callback(lambda _: self._running.pop(name))
        return await task

    async def _answered(self, question: Question, anew: bool) -> Answer:
        asking = _Asking(question, anew, self._ladders.setdefault(question.prompt, _Ladder(self._modes)))
        answer = None
        try:
            while answer is None:
                async with self._places:
                    answer, wait = await self._step(asking)
                await asyncio.sleep(wait)
            return answer
        finally:
            if asking.claimed:
                await self.desk.settle(question, answer, asking.requests)

    async def _step(self, asking: _Asking) -> tuple[Answer | None, float]:
        """Claims the question and sends one request; an answer, or in how many seconds the next step is due."""
        if not asking.claimed:
            answer, wait = await self._claim(asking)
            if not asking.claimed:
                return answer and replace(answer, cached=True), wait
        await self._admitted(asking.question)
        mode = asking.mode or asking.ladder.first()
        asking.requests += 1
        try:
            answer = await self._request(asking.question, mode)
        except _NoAnswer as failure:
            return None, await self._wait_after(asking, failure)
        except _NotTaken as failure:
            # The desk has to know that the request is over; of the `retries` it is none.
            await self.desk.failed(asking.question.key, down=False)
            asking.mode = asking.ladder.below(mode)
            if asking.mode is None:
                raise EndpointFailed(f"{self.config.where}: {failure}") from None
            return None, 0.0
        asking.ladder.worked(mode)
        return answer, 0.0

    async def _claim(self, asking: _Asking) -> tuple[Answer | None, float]:
        claiming = asyncio.ensure_future(self.desk.claim(asking.question.key, asking.anew))
        try:
            await asyncio.shield(claiming)
        finally:
            # Also when cancelled: what the desk has given has to be given back.
            answer, wait = await claiming
            asking.claimed = answer is None and not wait
        return answer, wait

    async def _admitted(self, question: Question) -> None:
        image = (self.config.image_pixels or 0) // IMAGE_PATCH if question.image else 0
        size = image + sum(len(message["content"].encode(errors="replace")) for message in question.messages)
        go = False
        while not go:
            go, wait = await self.desk.admit(question.key, size)
            await asyncio.sleep(wait)

    async def _wait_after(self, asking: _Asking, failure: _NoAnswer) -> float:
        """Reports a failure to the desk; seconds until the next try.

        Raises:
            EndpointFailed: it was the last one.
        """
        if await self.desk.failed(asking.question.key, failure.down):
            asking.failures += 1
        if asking.failures > self.config.retries:
            raise EndpointFailed(f"{self.config.where}: {failure} ({asking.requests} requests)") from None
        if failure.wait is not None:
            # Not all at the same moment.
            return min(failure.wait, MAX_RETRY_AFTER) * random.uniform(1.0, 1.1)
        return min(0.5 * 2.0 ** max(asking.failures - 1, 0), MAX_BACKOFF) * random.uniform(0.5, 1.0)

    async def _request(self, question: Question, mode: Mode) -> Answer:
        """One request's answer.

        Raises:
            _NoAnswer, _NotTaken, EndpointFailed, InputError: there is none. Causes may hold the key or the whole
                request, image included: they are not chained.
        """
        limit = 2 * self.config.timeout
        try:
            # The client's own limit counts anew with each byte, so a server that trickles would never reach it.
            async with asyncio.timeout(limit):
                found = await self.client.post(
                    "/chat/completions", body=request_body(self.config, question, mode), cast_to=object
                )
        except openai.APIStatusError as error:
            if error.code in _FILTERED:
                return Answer("", "content_filter", None, 0, 0)
            raise self._judged(error) from None
        except TimeoutError:
            raise _NoAnswer(f"no whole answer within {limit:g} s", down=True) from None
        except openai.APIConnectionError as error:
            raise _NoAnswer(reason(error, self.key), down=True) from None
        except UnicodeEncodeError:
            raise EndpointFailed("the question holds characters that are no Unicode text") from None
        except (openai.OpenAIError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _NoAnswer(reason(error, self.key)) from None
        answer = answer_of(found)
        if answer is None:
            raise _NoAnswer("the answer is no chat completion; does base_url end in /v1?")
        return answer

    def _judged(self, error: openai.APIStatusError) -> Exception:
        """What a status means, told by its number and the `code` that OpenAI and those who follow it put beside it."""
        status, said = error.status_code, reason(error, self.key)
        if status in (401, 403, 404):
            return InputError(refusal(self.config, error))
        if no_credit(error):
            return InputError(f"{self.config.where}: the account has no credit left (HTTP {status})")
        if status in (408, 409, 429) or status >= 500:
            return _NoAnswer(said, down=status >= 500, wait=retry_after(error.response.headers.get("retry-after")))
        if status not in (400, 422):
            return EndpointFailed(f"{self.config.where}: {said}")
        # One that we set ourselves would be refused in every other question too.
        if error.code in _NOT_TAKEN and error.param in ("temperature", "max_tokens", *self.config.extra):
            instead = "set max_completion_tokens" if error.param == "max_tokens" else f"set {error.param}: null"
            return InputError(f"{self.config.where} does not take '{error.param}' as it is; {instead} in 'extra'")
        return _NotTaken(said)


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks to wait, in either form of RFC 9110, section 10.2.3, and with decimals
    too, which some servers send; 0 for a time that is past, None for no header or none that can be read."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
