"""`ivm-mix status`: what a run holds, how fast it goes and who works on it, from its files alone."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from manifests.manifest import Manifest
from pipeline.config import Profile
from pipeline.errors import InputError, validation_problem
from pipeline.lock import LOCK_FILE, live_holder
from pipeline.parts import Parts, RunSpec
from pipeline.plan import PLAN_INDEX, committed_plan
from pipeline.store import DISCRIMINATOR, RUN_FILE, Marker, RunStore
from pipeline.summary import add_stats, print_results, unit_table
from pipeline.units import SAMPLES
from stages.instruct import TOKENS

WATCH_SECONDS = 5.0
RATE_SECONDS = 300.0
"""A unit's rate is that of the parts committed so long ago or later."""
READERS = 16
_TO_TOP = "\033[2J\033[H"


def open_run(run: str) -> tuple[RunSpec, RunStore]:
    """A run from its files alone.

    Raises:
        InputError: there is no run, or one of another version of this package.
    """
    store = RunStore(run)
    description, plan = store.read_json(RUN_FILE), committed_plan(store)
    if description is None or plan is None:
        raise InputError(f"{run}: no run here ({RUN_FILE} or its plan is missing); give the OUTPUT of a run")
    try:
        manifest = Manifest.model_validate(description["manifest"])
        profile = Profile.model_validate(description["profile"])
    except ValidationError as error:
        raise InputError(f"{run}/{RUN_FILE}: {validation_problem(error)}; the run is of another version") from error
    return RunSpec(store.output, manifest, profile, plan), store


def print_status(run: str, watch: float | None = None) -> None:
    """Prints a run's summary and who is working on it; with `watch` first follows a live run to its end or Ctrl-C,
    looking every so many seconds.

    Raises:
        InputError: there is no run to open, or `watch` is no time.
    """
    if watch is not None and not watch > 0:
        raise InputError(f"--watch {watch:g}: give seconds, more than 0")
    view = RunView(run)
    if watch:
        try:
            _follow(view, watch)
        except KeyboardInterrupt:
            print()
            return
    view.refresh()
    print(view.table())
    print_results(view.parts, view.markers, view.store)
    print(f"{view.spent()}{view.holder()}")


def _follow(view: "RunView", seconds: float) -> None:
    while True:
        try:
            view.refresh()
            if not view.live:
                return
            if sys.stdout.isatty():
                text = f"{_TO_TOP}{view.store.output}\n{view.table()}\n{view.spent()}{view.holder()}"
            else:
                text = f"{time.strftime('%H:%M:%S')} {view.line()}"
            print(text, flush=True)
        except OSError as error:
            # As for a lost network; the run itself may be well.
            print(f"ivm-mix: {view.store.output} cannot be read: {error}; trying again", file=sys.stderr)
        time.sleep(seconds)


class Pace(NamedTuple):
    """How fast a unit goes, in pairs per second, and the seconds that it needs for what is left."""

    rate: float
    left: float


@dataclass(frozen=True)
class _Seen:
    """A marker as it was read, from a file with this time of change (Unix seconds) and size."""

    changed: float
    size: int
    marker: Marker


class RunView:
    """A run as its storage has it. Its state is that of the last `refresh`, which reads only markers that are new.

    `live` is the lease of who works on it, see `live_holder`; `markers` are by unit and shard.
    """

    def __init__(self, run: str) -> None:
        """Raises InputError: there is no run to open."""
        self._run = run
        self.live: dict[str, Any] | None = None
        self._seen: dict[str, dict[str, _Seen]] = {}
        self._open()

    def _open(self) -> None:
        self.store = RunStore(self._run)
        # Looked at first: what changes while it is read is read again.
        self._opened = self._stamps()
        spec, _ = open_run(self._run)
        self.parts = Parts(spec, lambda unit, shard: self.markers[unit].get(shard))
        self.markers: dict[str, dict[int, Marker]] = {name: {} for name in spec.units}

    def _stamps(self) -> list[Any]:
        """What tells whether the run has another plan or profile."""
        return [self.store.stamp(name) for name in (RUN_FILE, PLAN_INDEX)]

    def refresh(self) -> None:
        """Brings the view up to date: lists the markers, and reads those that are new or were written again.

        Raises:
            OSError: the storage does not answer.
            InputError: the run is gone.
        """
        self.live = live_holder(self.store)
        if self._stamps() != self._opened:
            self._open()
        for unit in self.parts.units:
            self._seen[unit] = self._listed(unit)
            self.markers[unit] = {seen.marker.shard: seen.marker for seen in self._seen[unit].values()}

    def _listed(self, unit: str) -> dict[str, _Seen]:
        listed = self.store.listing(f"done/{unit}")
        before = self._seen.get(unit, {})
        stand = {name: seen for name, seen in before.items() if listed.get(name) == (seen.changed, seen.size)}

        def read(name: str) -> Marker | None:
            return self.store.marker(unit, int(name.removeprefix("part-").removesuffix(".json")))

        new = [name for name in listed if name.startswith("part-") and name not in stand]
        with ThreadPoolExecutor(READERS) as pool:
            read_now = {name: marker for name, marker in zip(new, pool.map(read, new), strict=True) if marker}
        return stand | {name: _Seen(*listed[name], marker) for name, marker in read_now.items()}

    def pace(self, unit: str) -> Pace | None:
        """A unit's pace over the last `RATE_SECONDS`; None where it has nothing left to do, or too little was done."""
        if unit == DISCRIMINATOR:
            return None
        shards = self.parts.spec.plan.shards
        done = [seen for seen in self._seen[unit].values() if self.parts.stands(self.parts.units[unit], seen.marker)]
        left = sum(shard.pairs for shard in shards) - sum(shards[seen.marker.shard].pairs for seen in done)
        now = time.time()
        recent = sorted((seen.changed, seen.marker.shard) for seen in done if seen.changed > now - RATE_SECONDS)
        # Time counts from the first of them, whose own work lies before.
        pairs = sum(shards[shard].pairs for _, shard in recent[1:])
        if not (left and pairs):
            return None
        rate = pairs / max(now - recent[0][0], 1e-3)
        return Pace(rate, left / rate)

    def table(self) -> str:
        """One line per unit, see `unit_table`; of a live run with pairs per second and the time that is left."""
        table = unit_table(self.parts, self.markers)
        if self.live:
            paces = [self.pace(unit) for unit in table["unit"]]
            table["pairs/s"] = [f"{pace.rate:.3g}" if pace else "" for pace in paces]
            table["left"] = [duration(pace.left) if pace else "" for pace in paces]
        return table.to_string(index=False)

    def line(self) -> str:
        """The main figures of the units that have begun, in one line."""
        told = []
        for row in unit_table(self.parts, self.markers).to_dict("records"):
            pace = self.pace(row["unit"])
            rejects = f", {row['rejects']} rejects" if row["rejects"] else ""
            speed = f", {pace.rate:.3g} pairs/s, {duration(pace.left)} left" if pace else ""
            if self.markers[row["unit"]]:
                told.append(f"{row['unit']} {row['shards']}{rejects}{speed}")
        return "; ".join(told) or "nothing committed yet"

    def spent(self) -> str:
        """Of a live run with a language model, a line of what the committed samples took of it; else empty.

        Answers of the batch interface come as kept ones; what they cost stands in run.json at the end.
        """
        config = self.parts.spec.profile.instruct.llm
        if config is None or not self.live:
            return ""
        stats = add_stats(self.markers[SAMPLES])
        new_in, new_out, kept = (round(stats.get(f"{TOKENS}{kind}", 0)) for kind in ("input", "output", "cached"))
        money = f", {config.price.of(new_in, new_out):,.4f} spent" if config.price and not config.batch else ""
        return (
            f"language model, for the samples so far: {new_in:,} tokens in, {new_out:,} out, "
            f"{kept:,} of kept answers{money}\n"
        )

    def holder(self) -> str:
        """Who works on the run, or that nobody does."""
        lease = self.live
        with suppress(InputError):
            lease = lease or self.store.read_json(LOCK_FILE)
        if lease is None:
            return "not running"
        who, ago = f"pid {lease['pid']} on {lease['host']}", duration(max(0.0, time.time() - lease["renewed"]))
        if self.live:
            return f"live: {who}, lock renewed {ago} ago"
        return f"not running; {who} ended without a word, its lock was last renewed {ago} ago"


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `3 h 20 min`, `2 d 5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
