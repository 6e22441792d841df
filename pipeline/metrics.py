"""What a run tells Prometheus while it works, through Ray's agent on each node; where there is none, nothing happens.

Ray writes `ray_` before every name here, and `_total` after a counter's. A worker that is killed takes its last
seconds' figures along: they are for watching, the run's tables are what counts. Of a histogram use the buckets: its
`_sum` is what Ray makes of them, each observation at the middle of its bucket.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from ray.util.metrics import Counter, Histogram

from pipeline.units import Unit
from stages.base import Output, Row
from stages.instruct import TOKENS

log = logging.getLogger(__name__)

TICK_SECONDS = 2.0
"""How often a worker tells how busy it is: a shard may take many minutes."""


class Metric(NamedTuple):
    """One metric: what it says, its tags, and the buckets' upper bounds in seconds if it is a histogram."""

    help: str
    tags: tuple[str, ...] = ("dataset", "unit")
    bounds: tuple[float, ...] = ()


METRICS = {
    "ivm_mix_pairs": Metric("Pairs that a unit has worked on; committed or rejected"),
    "ivm_mix_candidates": Metric("Candidate masks that an expert has committed"),
    "ivm_mix_rejects": Metric("Items that a unit has rejected"),
    "ivm_mix_tokens": Metric(
        "Tokens of a language model, by kind: input and output were paid for, cached are both of kept answers",
        ("dataset", "kind"),
    ),
    "ivm_mix_shard_seconds": Metric(
        "Seconds that a unit's worker took for a shard",
        bounds=(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    ),
    "ivm_mix_image_seconds": Metric(
        "Seconds that a unit's worker took for an image, on average over a shard; one observation per shard",
        bounds=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50),
    ),
    "ivm_mix_busy_seconds": Metric("Seconds that workers had a shard in work"),
    "ivm_mix_worker_seconds": Metric("Seconds that workers were there; their rate is the number of workers"),
    "ivm_mix_gpu_busy_seconds": Metric("Seconds that workers had a shard in work, times the GPUs each has reserved"),
    "ivm_mix_gpu_seconds": Metric("Seconds that workers were there, times the GPUs each has reserved"),
}
"""Tags are names from a profile or a manifest, so that series stay few."""


@cache
def _counter(name: str) -> Counter:
    return Counter(name, METRICS[name].help, METRICS[name].tags)


@cache
def _histogram(name: str) -> Histogram:
    return Histogram(name, METRICS[name].help, list(METRICS[name].bounds), METRICS[name].tags)


@contextmanager
def _harmless() -> Iterator[None]:
    # Whatever goes wrong while counting must not cost what is counted.
    try:
        yield
    except Exception:
        log.debug("a metric is lost", exc_info=True)


def count_tokens(dataset: str, **tokens: int) -> None:
    """Counts tokens by kind: `input`, `output` or `cached`, see `ivm_mix_tokens`."""
    with _harmless():
        for kind, number in tokens.items():
            if number > 0:
                _counter("ivm_mix_tokens").inc(number, {"dataset": dataset, "kind": kind})


class Meter:
    """Counts what one worker of a unit does, and how much of its time it is at work."""

    def __init__(self, dataset: str, unit: Unit) -> None:
        self._unit, self._tags = unit, {"dataset": dataset, "unit": unit.name}
        self._lock = threading.Lock()
        self._told = time.monotonic()
        self._at_work = False
        threading.Thread(target=self._tick, name="meter", daemon=True).start()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The worker is busy while the block lasts."""
        self._tell_time(at_work=True)
        try:
            yield
        finally:
            self._tell_time(at_work=False)

    def committed(self, items: Sequence[Row], output: Output, seconds: float) -> None:
        """Counts what came of these items of a shard in so many seconds."""
        with _harmless():
            self._count("ivm_mix_pairs", len(items))
            self._count("ivm_mix_candidates", len(output.rows) if self._unit.expert else 0)
            self._count("ivm_mix_rejects", len(output.rejects))
            count_tokens(self._tags["dataset"], cached=round(output.stats.get(f"{TOKENS}cached", 0)))
            _histogram("ivm_mix_shard_seconds").observe(seconds, self._tags)
            images = len({row["image"] for row in items})
            if images:
                _histogram("ivm_mix_image_seconds").observe(seconds / images, self._tags)

    def _count(self, name: str, value: float) -> None:
        if value > 0:
            _counter(name).inc(value, self._tags)

    def _tick(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            self._tell_time()

    def _tell_time(self, at_work: bool | None = None) -> None:
        """Counts the time since it was last told; from now on the worker is at work, is not, or goes on as it was."""
        with _harmless(), self._lock:
            now = time.monotonic()
            seconds, self._told = now - self._told, now
            busy = seconds if self._at_work else 0.0
            self._at_work = self._at_work if at_work is None else at_work
            gpus = self._unit.pool.gpus
            self._count("ivm_mix_worker_seconds", seconds)
            self._count("ivm_mix_busy_seconds", busy)
            self._count("ivm_mix_gpu_seconds", seconds * gpus)
            self._count("ivm_mix_gpu_busy_seconds", busy * gpus)
