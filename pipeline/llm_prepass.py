"""The questions of a run before they are asked: what batch mode sends, and what `--dry-run` counts."""

import logging
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from pipeline.engine import configure_ray_data, wait_for_room
from pipeline.errors import EndsRun
from pipeline.llm_batch import CollectingAsker, has_open_batches, run_batches
from pipeline.llm_session import money_spent
from pipeline.parts import RunSpec
from pipeline.store import RunStore
from pipeline.unit_workers import SamplesWorker
from pipeline.units import SAMPLES, Unit
from pipeline.worker import Shard
from stages.instruct import Instruct
from stages.llm import Answer, Question

log = logging.getLogger(__name__)

ROUNDS = 2
"""The questions themselves, and then the repairs of bad answers; what is left after that is asked live."""


class QuestionMapper:
    """Ray Data's worker of the pre-pass: shard numbers in, pickled questions that have no answer yet out."""

    def __init__(self, spec: RunSpec) -> None:
        async def find(key: str) -> Answer | None:
            return await spec.desk.find.remote(key)

        self.asker = CollectingAsker(find)
        # Nothing is attempted here: what cannot be loaded has no question, and is a reject in the real pass.
        self.samples = SamplesWorker(spec, SAMPLES, attempts=None)
        self.samples.instruct = Instruct(spec.profile.instruct, self.asker)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """The questions of a shard."""
        shard = Shard(int(batch["shard"][0]))
        self.samples.images = {}
        try:
            self.samples.process(shard, self.samples.items(shard))
        except (EndsRun, ray.exceptions.RayError):
            raise
        # Whatever one row makes a stage raise costs that row in the real pass, which asks live what is missing here.
        except Exception:
            log.exception("not all questions of shard %d go into a batch", shard.number)
        return pa.table({"question": pa.array(map(pickle.dumps, self.asker.taken()), pa.large_binary())})


def questions_of(spec: RunSpec, unit: Unit, shards: list[int]) -> Iterator[Question]:
    """The questions of these shards that have no answer, from the workers of `unit`, the samples."""
    configure_ray_data()
    workers = wait_for_room([unit])[unit.name]
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        QuestionMapper,
        fn_constructor_args=(spec,),
        batch_size=1,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=unit.pool.cpus,
        num_gpus=unit.pool.gpus,
    )
    for row in rows.iter_rows():
        yield pickle.loads(row["question"])


def ask_in_batches(spec: RunSpec, store: RunStore, unit: Unit, shards: list[int]) -> None:
    """Gets the questions of these shards answered through the endpoint's batch interface, which may take days; where
    the profile does not say so (any more), only waits for batches that are paid for.

    Raises:
        EndsRun: the interface is not there, or stays away; the same command goes on.
    """
    config = spec.profile.instruct.llm
    assert config is not None

    def money_left() -> float:
        return math.inf if config.budget is None else config.budget - (money_spent(spec) or 0.0)

    def settle(answers: list[Any]) -> None:
        ray.get(spec.desk.settle_batch.remote(answers))

    rounds = ROUNDS if config.batch else int(has_open_batches(store))
    for _ in range(rounds):
        questions = questions_of(spec, unit, shards) if config.batch else ()
        if not run_batches(config, store, questions, settle, money_left):
            break
