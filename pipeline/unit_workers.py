"""The workers of the four kinds of unit: how each gets its items and which stage it runs."""

import logging
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray

from manifests.manifest import open_reader
from pipeline import schemas, units
from pipeline.config import Pool, load_expert
from pipeline.errors import BadImage
from pipeline.parts import RunSpec
from pipeline.store import DISCRIMINATOR, RunStore, plan_file, table_file
from pipeline.units import CANDIDATES_PREFIX
from pipeline.watchdog import Watchdog
from pipeline.worker import Shard, UnitWorker
from stages import discriminators
from stages.base import Output, Row
from stages.ground import Ground
from stages.instruct import Instruct
from stages.label import Label
from stages.llm import Asker
from stages.load import Load, read_images
from stages.score import Score

log = logging.getLogger(__name__)

TELL_S = 10
"""How long a worker that is about to end may take to say why."""


class SamplesWorker(UnitWorker):
    """Load and instruct. Head of every wave: where the samples are committed it only fetches them and their images."""

    stage = "load"
    schema = schemas.SAMPLES
    extends_parts = True

    def __init__(self, spec: RunSpec, unit: str, attempts: Any) -> None:
        super().__init__(spec, unit, attempts)
        self.reader = open_reader(spec.manifest)
        self.load = Load(self.reader.read_mask)
        # In a wave whose samples are all committed there is no desk, and nothing to ask.
        asker = llm_asker(spec) if spec.desk else None
        self.instruct = Instruct(spec.profile.instruct, asker, again=unit in spec.retry)
        self.images: dict[str, bytes | BadImage] = {}

    def work(self, shard: Shard) -> Shard:
        self.images = {}
        super().work(shard)
        shard.samples = self.store.read_table(table_file(self.unit.name, shard.number)).to_pylist()
        self._fetch(shard.samples)
        wanted = {row["image"]: self.images[row["image"]] for row in shard.samples}
        shard.encoded = {image: data for image, data in wanted.items() if isinstance(data, bytes)}
        return shard

    def items(self, shard: Shard) -> list[Row]:
        sha256 = self.spec.plan.shards[shard.number].sha256
        return self.store.read_table(plan_file(shard.number, sha256)).to_pylist()

    def process(self, shard: Shard, items: list[Row]) -> Output:
        self._fetch([row for row in items if not row["error"]])
        loaded = self.load.run(items, self.images)
        instructed = self.instruct.run(loaded.rows, self.images)
        return Output(instructed.rows, loaded.rejects + instructed.rejects, instructed.stats)

    def _fetch(self, rows: list[Row]) -> None:
        missing = dict.fromkeys(row["image"] for row in rows if row["image"] not in self.images)
        self.images |= read_images(missing, self.reader.read)


class GroundWorker(UnitWorker):
    """One expert on one worker; its weights are loaded here, once."""

    stage = "ground"
    schema = schemas.CANDIDATES
    extends_parts = True

    def __init__(self, spec: RunSpec, unit: str, attempts: Any) -> None:
        super().__init__(spec, unit, attempts)
        name = self.unit.name.removeprefix(CANDIDATES_PREFIX)
        entry = spec.profile.experts[name]
        expert = load_expert(spec.profile, name)
        watching = Watchdog(entry.timeout_s, self._hung).watching if entry.timeout_s else nullcontext
        self.ground = Ground(name, expert, entry.version, entry.keep, watching)

    def _hung(self, seconds: float) -> None:
        log.error("%s: no answer for %g s, this worker ends; part %s", self.unit.name, seconds, self.part)
        ray.get(self.attempts.hung.remote(self.part, seconds), timeout=TELL_S)

    def items(self, shard: Shard) -> list[Row]:
        return shard.samples

    def process(self, shard: Shard, items: list[Row]) -> Output:
        return self.ground.run(items, shard.encoded)


class ScoreWorker(UnitWorker):
    """Scores every candidate and human mask of a shard."""

    stage = "score"
    schema = schemas.SCORES

    def __init__(self, spec: RunSpec, unit: str, attempts: Any) -> None:
        super().__init__(spec, unit, attempts)
        self.score = Score(load_discriminator(self.store, self.unit.pool), spec.profile.weight)
        self.candidates: list[Row] = []

    def items(self, shard: Shard) -> list[Row]:
        self.candidates = read_candidates(self.store, self.unit.inputs, shard.number)
        return shard.samples

    def process(self, shard: Shard, items: list[Row]) -> Output:
        return self.score.run(items, of_pairs(self.candidates, items), shard.encoded)


class LabelWorker(UnitWorker):
    """Fuses the candidates of each unlabelled pair into its label."""

    stage = "label"
    schema = schemas.LABELS

    def __init__(self, spec: RunSpec, unit: str, attempts: Any) -> None:
        super().__init__(spec, unit, attempts)
        self.label = Label(load_discriminator(self.store, self.unit.pool), spec.profile.weight, spec.profile.fusion)
        self.candidates: list[Row] = []
        self.scores: list[Row] = []

    def items(self, shard: Shard) -> list[Row]:
        self.candidates = read_candidates(self.store, self.unit.inputs, shard.number)
        self.scores = self.store.read_table(table_file(units.SCORES, shard.number)).to_pylist()
        return shard.samples

    def process(self, shard: Shard, items: list[Row]) -> Output:
        candidates, scores = of_pairs(self.candidates, items), of_pairs(self.scores, items)
        return self.label.run(items, candidates, scores, shard.encoded)


def llm_asker(spec: RunSpec) -> Asker:
    """What asks the run's language model, for the worker that calls this."""
    # Imported here because it brings the client of the endpoint, which other workers have no reason to wait for.
    from pipeline.ray_desk import RayDesk
    from stages.asker import EndpointAsker

    # Ray keeps an actor's id when it starts it again.
    worker = ray.get_runtime_context().get_actor_id()
    assert spec.profile.instruct.llm and worker
    return EndpointAsker(spec.profile.instruct.llm, RayDesk(spec.desk, worker))


def worker_class(unit: str) -> type[UnitWorker]:
    """The worker of a unit."""
    if unit.startswith(CANDIDATES_PREFIX):
        return GroundWorker
    return {units.SAMPLES: SamplesWorker, units.SCORES: ScoreWorker}.get(unit, LabelWorker)


def read_candidates(store: RunStore, inputs: tuple[str, ...], shard: int) -> list[Row]:
    """Candidate rows of a shard, with their `expert`, of those of `inputs` that are experts' units."""
    return [
        {**row, "expert": unit.removeprefix(CANDIDATES_PREFIX)}
        for unit in inputs
        if unit.startswith(CANDIDATES_PREFIX)
        for row in store.read_table(table_file(unit, shard)).to_pylist()
    ]


def of_pairs(rows: list[Row], samples: list[Row]) -> list[Row]:
    """The rows that belong to these samples."""
    wanted = {sample["uuid"] for sample in samples}
    return [row for row in rows if row["uuid"] in wanted]


def load_discriminator(store: RunStore, pool: Pool) -> discriminators.Scorer | None:
    """The run's trained discriminator, or None where the run has no human masks to train one on."""
    names = store.files(DISCRIMINATOR)
    if not names:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).write_bytes(store.read(f"{DISCRIMINATOR}/{name}") or b"")
        # Ray leaves the GPUs in sight of workers that have reserved none.
        return discriminators.load_discriminator(Path(folder), "auto" if pool.gpus else "cpu")
