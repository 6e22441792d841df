"""A worker process of one unit: takes a shard, runs the unit's stage on it, commits, hands the shard on."""

import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import pyarrow as pa
import ray

from pipeline.attempts import History, PartId
from pipeline.errors import EndsRun, ExpertHung, ItemError, WorkerDied
from pipeline.metrics import Meter
from pipeline.parts import Parts, RunSpec
from pipeline.schemas import REJECTS, to_table
from pipeline.store import Marker, RunStore, marker_file, rejects_file, table_file
from stages.base import Output, Row, group_by, reject

log = logging.getLogger(__name__)


@dataclass
class Shard:
    """What travels from unit to unit: the shard's sample rows, its encoded images by name, rejects committed so far."""

    number: int
    rejects: int = 0
    samples: list[Row] = field(default_factory=list)
    encoded: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Part:
    """What is known of a part when work on it begins: what stays of it, items to do, attempts of each so far."""

    kept: Output
    todo: list[Row]
    seconds: float = 0.0
    attempts: Mapping[str, int] = field(default_factory=dict)


class UnitWorker(ABC):
    """One process of a unit's actor pool; a subclass says what its items are and which stage works on them."""

    stage: ClassVar[str]
    """Name of the stage in reject rows."""
    schema: ClassVar[pa.Schema]
    extends_parts: ClassVar[bool] = False
    """Whether a committed part can be added to, as when rejects are replayed; else it is redone whole."""

    def __init__(self, spec: RunSpec, unit: str, attempts: Any) -> None:
        # Ray places workers by core; OpenCV would start as many threads in each as the machine has cores.
        cv2.setNumThreads(1)
        self.spec = spec
        self.store = RunStore(spec.output)
        self.parts = Parts(spec, self.store.marker)
        self.unit = self.parts.units[unit]
        self.attempts = attempts
        self.meter = Meter(spec.manifest.name, self.unit)
        self.node = ray.get_runtime_context().get_node_id()
        self.part: PartId | None = None

    @abstractmethod
    def items(self, shard: Shard) -> list[Row]:
        """The rows the unit works on, in an order that replayed rejects only add to."""

    @abstractmethod
    def process(self, shard: Shard, items: list[Row]) -> Output:
        """Runs the stage on some of the shard's items."""

    def work(self, shard: Shard) -> Shard:
        """Does and commits what is left of the shard; returns it for the next unit."""
        if not self.parts.is_done(self.unit, shard.number):
            self.part = (self.unit.name, shard.number)
            history: History = ray.get(self.attempts.begin.remote(self.part, self.node))
            self._do(shard, history)
            ray.get(self.attempts.end.remote(self.part))
        return shard

    def _do(self, shard: Shard, history: History) -> None:
        started = time.monotonic()
        read = self.parts.inputs_read(self.unit, shard.number)
        if read is None:
            raise RuntimeError(f"{self.unit.name} came to shard {shard.number} before what it reads was committed")
        items = self.items(shard)
        part = self._open_part(shard, items)
        output = None if history.suspicious else self._run_whole(shard, part.todo)
        if output is None:
            output = self._run_by_image(shard, part.todo, history)
        for row in output.rejects:
            row["attempts"] += part.attempts.get(row["uuid"], 0)
        part.kept.add(output)
        shard.rejects += len(output.rejects)
        seconds = time.monotonic() - started
        self._commit(shard.number, part.kept, read, items, part.seconds + seconds)
        self.meter.committed(part.todo, output, seconds)

    def _open_part(self, shard: Shard, items: list[Row]) -> Part:
        marker = self.store.marker(self.unit.name, shard.number)
        if not (self.extends_parts and marker and self.parts.stands(self.unit, marker)):
            return Part(Output(), items)
        if marker.items != digest(items[: marker.covered]):
            return Part(Output(), items)
        rows = self.store.read_table(table_file(self.unit.name, shard.number)).to_pylist()
        rejects = self.store.read_rejects(self.unit.name, shard.number).to_pylist()
        again = {row["uuid"]: row["attempts"] for row in rejects if row["uuid"] and self.unit.name in self.spec.retry}
        todo = [row for k, row in enumerate(items) if k >= marker.covered or row["uuid"] in again]
        kept = Output(rows, [row for row in rejects if row["uuid"] not in again], marker.stats)
        return Part(kept, todo, marker.seconds, again)

    def _run_whole(self, shard: Shard, items: list[Row]) -> Output | None:
        try:
            return self._run(shard, items)
        except EndsRun:
            raise
        # Whatever one row makes a stage raise must not cost the others; image by image the culprit is found.
        except Exception:
            log.exception("%s failed on shard %d as a whole; going image by image", self.unit.name, shard.number)
            return None

    def _run_by_image(self, shard: Shard, items: list[Row], history: History) -> Output:
        output = Output()
        for image, rows in group_by(items, "image").items():
            if (deaths := history.deaths.get(image, 0)) >= 2:
                error = quarantine_error(deaths, history.hung.get(image))
                quarantined = [reject(row, error, self.stage, self.unit.expert) for row in rows]
                output.rejects += [{**row, "attempts": deaths} for row in quarantined]
                continue
            ray.get(self.attempts.working_on.remote(self.part, image))
            output.add(self._run_by_row(shard, rows))
        ray.get(self.attempts.working_on.remote(self.part, None))
        return output

    def _run_by_row(self, shard: Shard, rows: list[Row]) -> Output:
        try:
            return self._run(shard, rows)
        except EndsRun:
            raise
        # As above; once a row is alone, it is the culprit.
        except Exception as error:  # noqa: BLE001
            if len(rows) == 1:
                return Output(rejects=[reject(rows[0], error, self.stage, self.unit.expert)])
        output = Output()
        for row in rows:
            output.add(self._run_by_row(shard, [row]))
        return output

    def _run(self, shard: Shard, items: list[Row]) -> Output:
        output = self.process(shard, items)
        # Converted here too, so that a value no table can hold is caught while its row can still be told.
        to_table(output.rows, self.schema)
        return output

    def _commit(self, shard: int, output: Output, read: dict[str, str], items: list[Row], seconds: float) -> None:
        name = self.unit.name
        # A marker must never stand beside files that are being rewritten.
        self.store.delete([marker_file(name, shard)])
        table = table_file(name, shard)
        written = {table: self.store.write_table(table, to_table(output.rows, self.schema))}
        rejects = rejects_file(name, shard)
        if output.rejects:
            written[rejects] = self.store.write_table(rejects, to_table(output.rejects, REJECTS))
        else:
            self.store.delete([rejects])
        marker = Marker(
            unit=name,
            shard=shard,
            fingerprint=self.parts.fingerprints[name],
            read=read,
            sha256=written,
            covered=len(items),
            items=digest(items),
            rows=len(output.rows),
            rejects=len(output.rejects),
            stats=output.stats,
            seconds=round(seconds, 3),
        )
        self.store.write(marker_file(name, shard), marker.model_dump_json(indent=2).encode())


def quarantine_error(deaths: int, hung_s: float | None) -> ItemError:
    """Why an image is not tried again: `deaths` processes ended on it, the last after a call hung for `hung_s`."""
    if hung_s is None:
        return WorkerDied(f"the worker process died {deaths} times while it worked on this image")
    return ExpertHung(
        f"the expert hung for {hung_s:g} s on this image and was ended, {deaths} times; mend the expert or the image, "
        "or raise the expert's timeout_s"
    )


def digest(items: Iterable[Row]) -> str:
    """Checksum of which items these are, in their order."""
    return hashlib.sha256("\n".join(row["uuid"] or "" for row in items).encode()).hexdigest()
