"""The desk of a run: who asks which question, when a request may be sent, and what is kept of it."""

import posixpath
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipeline.answers import AnswerStore, Asked, Sums, new_record
from pipeline.ledger import Ledger
from pipeline.limits import Breaker, Budget, Clock, RequestLimit, TokenLimit
from pipeline.metrics import count_tokens
from pipeline.store import RunStore
from stages.asker import MAX_RETRY_AFTER
from stages.llm import Admission, Answer, Claim, LlmConfig

HIDDEN_TOKENS = 500
"""Tokens of a request that its text does not have: a few for each message, and the schema, where a server counts it."""

_BUSY_SECONDS = 0.5


class Worker(NamedTuple):
    """Who asks: a `name` that a worker keeps when it is started again, and its `life`, which is another then."""

    name: str
    life: str


@dataclass
class _Life:
    life: str
    until: float


class LlmDesk:
    """What the workers of a run share when they ask a language model; see `stages.llm.Desk` for what calls mean.

    Calls come one at a time, from any number of workers. What one had claimed that died is free when it is started
    again, or when it has been silent for the longest that a living one can be.
    """

    def __init__(self, config: LlmConfig, output: str, dataset: str, clock: Clock = time.monotonic) -> None:
        """Opens the answers of this `output` and of other runs.

        Raises:
            InputError: the folder of the answers cannot be used.
        """
        run = RunStore(output)
        # Without what a URI may have of a key.
        self._run = f"{run.fs.type_name}:{run.root}"
        self._config, self._dataset, self._clock = config, dataset, clock
        # A request that times out, twice over because time counts anew with each part of an answer, and a margin.
        self._patience = 2 * config.timeout + 60
        self._opened = time.time()
        self._answers = AnswerStore(config.answers or answers_beside(output))
        self._ledger = Ledger(config.price, self._answers.sums(self._run))
        self._claims: dict[str, Worker] = {}
        self._lives: dict[str, _Life] = {}
        self._requests = RequestLimit(config.requests_per_minute, clock)
        self._tokens = TokenLimit(config.tokens_per_minute, clock)
        self._breaker = Breaker(config.outage_minutes * 60, self._patience, clock)
        self._budget = Budget(config.budget)

    def find(self, key: str) -> Answer | None:
        """The answer to a question, or None where there is none; claims nothing."""
        return self._answers.find(key)

    def claim(self, key: str, worker: Worker, anew: bool = False) -> Claim:
        """See `Desk.claim`. An answer that was given since the desk opened is new to every `anew`."""
        self._alive(worker)
        answer = self._answers.find(key, self._opened if anew else 0.0)
        if answer:
            return Claim(answer)
        if key in self._claims:
            if self._lives_on(self._claims[key]):
                return Claim(None, random.uniform(0.2, 1.0))
            self._free(key)
        self._claims[key] = worker
        return Claim(None)

    def _alive(self, worker: Worker, quiet: float = 0.0) -> None:
        """Notes that a worker lives, and that it may be silent for `quiet` seconds and one request."""
        until = self._clock() + quiet + self._patience
        life = self._lives.get(worker.name)
        if life is None or life.life != worker.life:
            self._lives[worker.name] = _Life(worker.life, until)
        else:
            life.until = max(life.until, until)

    def _lives_on(self, worker: Worker) -> bool:
        life = self._lives[worker.name]
        return life.life == worker.life and self._clock() < life.until

    def admit(self, key: str, worker: Worker, size: int) -> Admission:
        """See `Desk.admit`."""
        wait = self._held_back(key, size)
        go = wait == 0
        if go:
            wait = self._requests.take()
            self._tokens.take(key, self._most_input(size) + self._config.most_output)
        self._alive(worker, wait)
        return Admission(go, wait)

    def _held_back(self, key: str, size: int) -> float:
        """Seconds after which to ask again, 0 if the request may be sent in its turn."""
        price = self._config.price
        most = price.of(self._most_input(size), self._config.most_output) if price else 0.0
        if not self._budget.hold(key, most, self._ledger.money):
            self._free_of_the_dead()
            return _BUSY_SECONDS
        return self._tokens.wait(key) or self._breaker.wait(key)

    def _most_input(self, size: int) -> int:
        # No tokenizer makes more than one token of a byte.
        return size + HIDDEN_TOKENS

    def failed(self, key: str, worker: Worker, down: bool) -> bool:
        """See `Desk.failed`."""
        self._alive(worker, MAX_RETRY_AFTER)
        self._tokens.settle(key, None)
        # Else those that wait for its money could hold every place that its next try needs.
        self._budget.release(key)
        return self._breaker.failed(key, down)

    def settle(self, asked: Asked, worker: Worker, answer: Answer | None, requests: int) -> None:
        """See `Desk.settle`. The answer of a worker that was taken for dead is kept too: it was paid for.

        Raises:
            RunFailed: answers cannot be written.
        """
        self._alive(worker)
        if answer:
            self._tokens.settle(asked.key, answer.input_tokens + answer.output_tokens)
            self._breaker.succeeded()
        if self._claims.get(asked.key) == worker:
            self._free(asked.key)
        if requests:
            self._keep(asked, answer, requests, batch=False)

    def settle_batch(self, answers: list[tuple[Asked, Answer]]) -> None:
        """Keeps answers of a batch, one request each; returns when they are on storage. Those that the store has are
        ignored.

        Raises:
            RunFailed: answers cannot be written.
        """
        for asked, answer in answers:
            if self._answers.find(asked.key) is None:
                self._keep(asked, answer, 1, batch=True)
        self._answers.flush()

    def _keep(self, asked: Asked, answer: Answer | None, requests: int, batch: bool) -> None:
        record = new_record(self._run, self._dataset, self._config.model, asked, answer, requests, batch)
        tokens = record.input_tokens, record.output_tokens
        self._ledger.add(Sums(self._dataset, asked.prompt, batch, requests, int(answer is not None), *tokens))
        self._answers.put(record)
        count_tokens(self._dataset, input=record.input_tokens, output=record.output_tokens)

    def _free(self, key: str) -> None:
        self._claims.pop(key, None)
        self._budget.release(key)
        self._tokens.settle(key, None)
        self._breaker.dropped(key)

    def _free_of_the_dead(self) -> None:
        for key in [key for key, worker in self._claims.items() if not self._lives_on(worker)]:
            self._free(key)

    def ledger(self) -> list[dict[str, Any]]:
        """The rows of the run's ledger, see `Ledger.rows`: of all its commands together."""
        return self._ledger.rows()

    def close(self) -> None:
        """Writes the last answers.

        Raises:
            RunFailed: they cannot be written.
        """
        self._answers.close()


def answers_beside(output: str) -> str:
    """The folder `answers` beside a run's folder, or in the bucket of a run that is all of it."""
    if "://" not in output:
        return str(Path(output).absolute().parent / "answers")
    parts = urlsplit(output)
    return parts._replace(path=posixpath.join(posixpath.dirname(parts.path.rstrip("/")) or "/", "answers")).geturl()
