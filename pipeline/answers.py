"""The answer store: what language models answered, kept as plain files for all runs that share its folder.

`segments/part-<id>.jsonl` and `segments/full-<id>.jsonl` hold one `Record` a line. A file never changes: answers are
added as new files, and small files are merged by writing one with their lines before they are deleted. A kill in
between leaves lines twice, which the records' ids tell. So nothing needs a lock, an append or a rename, and any number
of runs may write, merge and read at once, on object storage and NFS too.
"""

import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from uuid import uuid4

from pyarrow import fs
from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import InputError, RunFailed
from pipeline.store import RunStore
from stages.llm import Answer, Question

log = logging.getLogger(__name__)

SEGMENTS = "segments"
"""Folder of the files, inside that of the answers."""
TIER = 32
"""So many files of about one size become one."""
FULL_BYTES = 16_000_000
"""A file of so many bytes is merged no more."""
LOCAL_SECONDS, REMOTE_SECONDS = 0.04, 0.8
"""For how long answers are gathered into one file, on a disk and on object storage."""

_SEGMENT = re.compile(r"(part|full)-[0-9a-f]{32}\.jsonl")
_CACHE_KIB = 65536

_TABLES = """
    CREATE TABLE records (
        id BLOB PRIMARY KEY, key BLOB, at REAL, said TEXT, run TEXT, dataset TEXT, prompt TEXT, batch INTEGER,
        requests INTEGER, input_tokens INTEGER, output_tokens INTEGER
    )"""
_FIND = """
    SELECT said, input_tokens, output_tokens FROM records
    WHERE key = ? AND at >= ? AND said IS NOT NULL ORDER BY at DESC LIMIT 1"""
_SUMS = """
    SELECT dataset, prompt, batch, SUM(requests), COUNT(said), SUM(input_tokens), SUM(output_tokens) FROM records
    WHERE run = ? GROUP BY dataset, prompt, batch"""

_MEANS = """
    SELECT COUNT(*), AVG(input_tokens), AVG(output_tokens) FROM records
    WHERE prompt = ? AND said IS NOT NULL AND input_tokens > 0"""


class Asked(NamedTuple):
    """What is kept of a question."""

    key: str
    prompt: str
    prompt_hash: str

    @classmethod
    def of(cls, question: Question) -> "Asked":
        """What is kept of this question."""
        return cls(question.key, question.prompt, question.prompt_hash)


class Record(BaseModel, frozen=True):
    """One question that was asked by a run: its answer, or no `text` if it was given up. `requests` is how many were
    sent for it, `at` seconds since 1970."""

    id: str = Field(pattern="^[0-9a-f]{32}$")
    key: str = Field(pattern="^[0-9a-f]{64}$")
    run: str
    dataset: str
    prompt: str
    prompt_hash: str
    model: str
    text: str | None
    finish_reason: str | None
    refusal: str | None
    input_tokens: int = Field(ge=0, le=2**53)
    output_tokens: int = Field(ge=0, le=2**53)
    requests: int = Field(ge=0, le=2**53)
    batch: bool
    at: float

    @property
    def line(self) -> bytes:
        """The record as a line of a segment."""
        # All ASCII: a model's text may hold half a surrogate pair, which has no UTF-8.
        return json.dumps(self.model_dump()).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> "Record":
        """The record in a line; raises ValueError where it is none."""
        try:
            return cls.model_validate_json(line)
        except ValidationError:
            # Twice as slow, but takes half a surrogate pair.
            return cls.model_validate(json.loads(line))


class Sums(NamedTuple):
    """Sums over records of one dataset, prompt and way of asking."""

    dataset: str
    prompt: str
    batch: bool
    requests: int = 0
    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Means(NamedTuple):
    """What one of so many answers took on average."""

    answers: int
    input_tokens: float
    output_tokens: float


class AnswerStore:
    """The answers in a folder or URI, as they were when it was opened, and those put since.

    What another run writes later is not seen. Calls come from one thread at a time. Lookups go through a database in
    a temporary file of this process, which the system deletes with it: memory does not grow with the answers.
    """

    def __init__(self, folder: str) -> None:
        """Raises InputError: the folder cannot be opened, or not be written."""
        self._store = answers_folder(folder)
        self._gather_seconds = LOCAL_SECONDS if self._store.is_local else REMOTE_SECONDS
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute(_TABLES)
        self._waiting: list[bytes] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._commits: list[Future[None]] = []
        self._committer = ThreadPoolExecutor(1, "answers")
        # A thread of its own, so that no answer waits for a merge.
        self._merger = ThreadPoolExecutor(1, "answers-merge")
        self._levels: dict[int, list[str]] = {}
        parts = self._load()
        self._database.execute("CREATE INDEX by_key ON records (key, at)")
        if len(parts) > TIER:
            self._merger.submit(self._merge, parts)

    def find(self, key: str, since: float = 0.0) -> Answer | None:
        """The newest answer to a question, or None; only answers given `since` then, in seconds since 1970."""
        row = self._database.execute(_FIND, (bytes.fromhex(key), since)).fetchone()
        if row is None:
            return None
        said, input_tokens, output_tokens = row
        text, finish_reason, refusal = json.loads(said)
        return Answer(text, finish_reason, refusal, input_tokens, output_tokens, cached=True)

    def sums(self, run: str) -> list[Sums]:
        """What a run has asked so far, in this process and before."""
        rows = self._database.execute(_SUMS, (run,))
        return [Sums(dataset, prompt, bool(batch), *counts) for dataset, prompt, batch, *counts in rows]

    def means(self, prompt: str) -> Means | None:
        """What answers to a prompt, in all its versions and of all models, took; None without any whose tokens were
        counted."""
        means = Means(*self._database.execute(_MEANS, (prompt,)).fetchone())
        return means if means.answers else None

    def put(self, record: Record) -> None:
        """Keeps a record; it is on storage a moment later, about 50 ms on a disk and 1 s on object storage.

        Raises:
            RunFailed: an earlier one could not be written; `close` tries once more.
        """
        self._insert([record])
        with self._lock:
            self._waiting.append(record.line)
            if len(self._waiting) == 1:
                self._commits.append(self._committer.submit(self._commit))
        self._check([commit for commit in self._commits if commit.done()])
        self._commits = [commit for commit in self._commits if not commit.done()]

    def flush(self) -> None:
        """Returns when all that was put is on storage; raises as `put` does."""
        self._check(self._commits)

    def close(self) -> None:
        """Writes what waits, ends merges. Raises RunFailed: answers could not be written, and are lost."""
        self._closing.set()
        try:
            self._check([self._committer.submit(self._commit)])
        finally:
            self._committer.shutdown()
            self._merger.shutdown()
            self._database.close()

    def _check(self, commits: list[Future[None]]) -> None:
        try:
            for commit in commits:
                commit.result()
        except OSError as error:
            raise RunFailed(f"answers cannot be written to {self._store.output}: {error}") from error

    def _commit(self) -> None:
        self._closing.wait(self._gather_seconds)
        with self._lock:
            lines, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            name = self._write(lines)
        except OSError:
            with self._lock:
                self._waiting = lines + self._waiting
            raise
        self._merger.submit(self._promote, name, 0)

    def _write(self, lines: Iterable[bytes]) -> str:
        data = b"".join(lines)
        name = f"{SEGMENTS}/{'full' if len(data) >= FULL_BYTES else 'part'}-{uuid4().hex}.jsonl"
        self._store.write(name, data)
        return name

    def _promote(self, name: str, level: int) -> None:
        """Notes a segment that this process wrote, and merges its level when that has `TIER` of them."""
        names = self._levels.setdefault(level, [])
        names.append(name)
        if len(names) == TIER:
            self._levels[level] = []
            rest = self._merge(names)
            if rest:
                self._promote(rest, level + 1)

    def _merge(self, names: list[str]) -> str | None:
        """Writes the lines of segments into as few as may be and deletes them; the one that is not full, if any."""
        lines: dict[bytes, None] = {}
        taken: list[str] = []
        size = 0
        try:
            for name in names:
                data = self._read(name)
                if data is None:
                    # Merged by another run.
                    continue
                lines.update(dict.fromkeys(data.splitlines(keepends=True)))
                taken.append(name)
                size += len(data)
                if size >= FULL_BYTES:
                    self._write(lines)
                    self._store.delete(taken)
                    lines, taken, size = {}, [], 0
            if len(taken) < 2:
                return taken[0] if taken else None
            merged = self._write(lines)
            self._store.delete(taken)
            return merged
        except OSError as error:
            log.warning("answers in %s stay in many small files: %s", self._store.output, error)
            return None

    def _read(self, name: str) -> bytes | None:
        try:
            return self._store.read(name)
        except OSError:
            # Deleted while it was read, by a run that merged it; storages have many errors for that.
            if self._store.fs.get_file_info(self._store.path(name)).type != fs.FileType.NotFound:
                raise
            return None

    def _load(self) -> list[str]:
        """Loads all segments; the names of those that may be merged."""
        parts: list[str] = []
        seen: set[str] = set()
        complete = False
        while not complete:
            complete = True
            for file in self._store.files(SEGMENTS):
                if file in seen or not _SEGMENT.fullmatch(file):
                    continue
                seen.add(file)
                name = f"{SEGMENTS}/{file}"
                data = self._read(name)
                if data is None:
                    # Merged by another run: its lines are in a file that this listing may lack.
                    complete = False
                elif self._load_segment(name, data) and file.startswith("part-"):
                    parts.append(name)
        return parts

    def _load_segment(self, name: str, data: bytes) -> bool:
        """Loads the records of a segment; whether every line is one."""
        bad = 0

        def records() -> Iterable[Record]:
            nonlocal bad
            for line in data.splitlines():
                try:
                    yield Record.of_line(line)
                except ValueError:
                    bad += 1

        self._insert(records())
        if bad:
            log.warning("%s: %d lines are no answers; skipped", self._store.path(name), bad)
        return not bad

    def _insert(self, records: Iterable[Record]) -> None:
        rows = (
            (
                bytes.fromhex(record.id),
                bytes.fromhex(record.key),
                record.at,
                None if record.text is None else json.dumps([record.text, record.finish_reason, record.refusal]),
                record.run,
                record.dataset,
                record.prompt,
                record.batch,
                record.requests,
                record.input_tokens,
                record.output_tokens,
            )
            for record in records
        )
        self._database.executemany(f"INSERT OR IGNORE INTO records VALUES ({', '.join('?' * 11)})", rows)


def answers_folder(folder: str) -> RunStore:
    """The storage of this folder of answers; raises InputError where it cannot be opened, or not be written."""
    try:
        store = RunStore(folder)
        store.check_writable()
    except InputError as error:
        raise InputError(f"'answers' of the language model: {error}") from error
    return store


def new_record(
    run: str, dataset: str, model: str, asked: Asked, answer: Answer | None, requests: int, batch: bool
) -> Record:
    """The record of a question that was asked just now; `answer` is None if it was given up."""
    said = answer or Answer("", "", None, 0, 0)
    return Record(
        id=uuid4().hex,
        **asked._asdict(),
        run=run,
        dataset=dataset,
        model=model,
        text=said.text if answer else None,
        finish_reason=said.finish_reason if answer else None,
        refusal=said.refusal,
        input_tokens=said.input_tokens,
        output_tokens=said.output_tokens,
        requests=requests,
        batch=batch,
        at=time.time(),
    )
