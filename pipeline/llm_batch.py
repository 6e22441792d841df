"""Batch mode: questions are answered through the endpoint's asynchronous batch interface, at a lower price.

A pre-pass of the stage notes its questions with `CollectingAsker`; `run_batches` gets them answered into the answer
store, where the real pass finds them. What a batch leaves without an answer, the real pass asks live.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from pipeline.answers import Asked
from pipeline.batch_api import URL, Batch, BatchApi
from pipeline.errors import InputError, ItemError
from pipeline.store import RunStore
from stages.asker import answer_of, request_body
from stages.llm import Answer, LlmConfig, Question

FOLDER = "batches"
MAX_REQUESTS = 50_000
MAX_BYTES = 100_000_000
"""The most in one file that every batch interface takes; some take more."""
WORTH_A_BATCH = 100
"""A batch may take a day: for fewer questions than these the end of the budget is not stretched by another."""
POLL_SECONDS = (5.0, 60.0)
"""The first and the longest pause between two looks at the batches."""


class Deferred(ItemError):
    """A question waits for its batch, and its row with it: neither a failure nor a row of the rejects table."""


class CollectingAsker:
    """An `Asker` that asks nobody: it gives the answers that `find` has by key, and notes the other questions."""

    def __init__(self, find: Callable[[str], Awaitable[Answer | None]]) -> None:
        self._find = find
        self._noted: dict[str, Question] = {}

    async def ask(self, question: Question, anew: bool = False) -> Answer:
        """The answer that is there.

        Raises:
            Deferred: there is none, or it is wanted `anew`, which is for the real pass.
        """
        answer = await self._find(question.key)
        if answer is None:
            self._noted[question.key] = question
        elif not anew:
            return replace(answer, cached=True)
        raise Deferred("the question waits for its batch")

    def taken(self) -> list[Question]:
        """The questions noted since the last call, no two alike."""
        noted, self._noted = self._noted, {}
        return list(noted.values())


Settle = Callable[[list[tuple[Asked, Answer]]], None]
"""Keeps answers, as `LlmDesk.settle_batch` does: it returns when they are on storage. After a kill it gets some again,
and has to ignore those that it has."""


class Job(BaseModel):
    """`batches/<id>.json`, one batch of `questions`; its requests lie beside it in `<id>.jsonl` until it is over.

    `batch` is its id at the endpoint, None until that has answered. `left` are the keys that it left without an
    answer, None until it is over: no batch is tried for them again.
    """

    id: str
    questions: list[Asked]
    batch: str | None = None
    left: list[str] | None = None


def has_open_batches(store: RunStore) -> bool:
    """Whether an earlier command of the run has sent batches that it did not see the end of."""
    # The requests of a batch are deleted when it is over.
    return any(name.endswith(".jsonl") for name in store.files(FOLDER))


def run_batches(
    config: LlmConfig,
    store: RunStore,
    questions: Iterable[Question],
    settle: Settle,
    money_left: Callable[[], float],
) -> int:
    """Settles all batches that an earlier command left open, then `questions` in new ones; returns how many answers.

    `questions` is read only when the open batches are settled, so that a lazy one asks for no answer that was under
    way. It is done when all batches are over, which may take a day. `money_left` is what the budget leaves, in its
    currency, infinity without one.

    Where the next question could cost more than is left, the rest is for the real pass, which counts money to the last
    request.

    Raises:
        EndsRun: as `BatchApi` raises it; the same call goes on.
    """
    with closing(BatchApi(config)) as api:
        batches = _Batches(config, store, api, settle)
        batches.finish()
        batches.add(questions, money_left)
        batches.finish()
        return batches.answers


@dataclass
class _Draft:
    asked: list[Asked] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    size: int = 0

    def fits(self, line: bytes) -> bool:
        return len(self.lines) < MAX_REQUESTS and self.size + len(line) <= MAX_BYTES

    def append(self, question: Question, line: bytes) -> None:
        self.asked.append(Asked.of(question))
        self.lines.append(line)
        self.size += len(line)


class _Batches:
    """The batches of a run. What is to be sent is on storage under a name of ours before any of it is sent."""

    def __init__(self, config: LlmConfig, store: RunStore, api: BatchApi, settle: Settle) -> None:
        self._config = config
        self._store = store
        self._api = api
        self._settle = settle
        names = store.files(FOLDER)
        jobs = [self._load(name) for name in names if name.endswith(".json")]
        self._open = [job for job in jobs if job.left is None]
        self._tried = {key for job in jobs for key in job.left or []}
        wanted = {f"{job.id}.jsonl" for job in self._open}
        # Left by a kill before the intent was written, or after it was fulfilled.
        store.delete(f"{FOLDER}/{name}" for name in names if name.endswith(".jsonl") and name not in wanted)
        self.answers = 0

    def _load(self, name: str) -> Job:
        try:
            return Job.model_validate_json(self._store.read(f"{FOLDER}/{name}") or b"")
        except ValidationError:
            path = self._store.path(f"{FOLDER}/{name}")
            raise InputError(f"{path} is damaged; delete it, and its questions are asked again") from None

    def _save(self, job: Job) -> None:
        self._store.write(f"{FOLDER}/{job.id}.json", job.model_dump_json().encode())

    def add(self, questions: Iterable[Question], money_left: Callable[[], float]) -> None:
        """Sends off questions that no batch has had yet, waiting for some to end where money is short."""
        draft, money = _Draft(), money_left()
        for question in questions:
            if question.key in self._tried:
                continue
            self._tried.add(question.key)
            line = self._line(question)
            most = self._most(line)
            if draft.lines and (most > money or not draft.fits(line)):
                self._send(draft)
                draft = _Draft()
            if most > money:
                self.finish()
                money = money_left()
                if most * WORTH_A_BATCH > money:
                    _say("the budget is too low for another batch; what is left of it is for questions asked live")
                    return
            draft.append(question, line)
            money -= most
        if draft.lines:
            self._send(draft)

    def _line(self, question: Question) -> bytes:
        mode = "json_schema" if self._config.structured == "auto" else self._config.structured
        body = request_body(self._config, question, mode)
        return json.dumps({"custom_id": question.key, "method": "POST", "url": URL, "body": body}).encode() + b"\n"

    def _most(self, line: bytes) -> float:
        # No token is shorter than a byte.
        price = self._config.price
        return price.of(len(line), self._config.most_output, batch=True) if price else 0.0

    def _send(self, draft: _Draft) -> None:
        job = Job(id=uuid4().hex, questions=draft.asked)
        self._store.write(f"{FOLDER}/{job.id}.jsonl", b"".join(draft.lines))
        self._save(job)
        self._open.append(job)
        self._batch_of(job)

    def _batch_of(self, job: Job) -> str:
        if job.batch is None:
            requests = self._store.read(f"{FOLDER}/{job.id}.jsonl") or b""
            job.batch = self._api.created(job.id, requests).id
            self._save(job)
        return job.batch

    def finish(self) -> None:
        """Waits until all batches are over, and settles each then."""
        waiting = {self._batch_of(job): job for job in self._open}
        said: dict[str, str] = {}
        pause, longest = POLL_SECONDS
        while waiting:
            for name, job in list(waiting.items()):
                batch = self._api.look(name)
                if said.get(name) != batch.status:
                    said[name] = batch.status
                    _say(f"batch {name} of {len(job.questions)} questions: {batch.status}")
                if batch.over:
                    self._end(job, batch)
                    del waiting[name]
            if waiting:
                time.sleep(pause)
                pause = min(2 * pause, longest)
        self._open = []

    def _end(self, job: Job, batch: Batch) -> None:
        waiting = {asked.key: asked for asked in job.questions}
        problems = Counter(batch.problems)
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            found: list[tuple[Asked, Answer]] = []
            for line in self._api.lines(file):
                if line.custom_id not in waiting:
                    continue
                if answer := answer_of(line.body):
                    found.append((waiting.pop(line.custom_id), answer))
                else:
                    problems[line.problem] += 1
            if found:
                self._settle(found)
                self.answers += len(found)
        job.left, job.questions = list(waiting), []
        self._save(job)
        self._store.delete([f"{FOLDER}/{job.id}.jsonl"])
        self._tried.update(job.left)
        if waiting:
            why = ", ".join(f"{problem}: {count}" for problem, count in problems.items()) or "no reason given"
            _say(f"batch {batch.id} {batch.status}: {len(waiting)} questions without an answer ({why}); asked live")


def _say(line: str) -> None:
    print(f"ivm-mix: {line}", file=sys.stderr, flush=True)
