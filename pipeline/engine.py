"""The Ray Data graph: one row is one shard, one actor pool per unit, units in waves."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import SystemException
from ray.util.placement_group import placement_group, remove_placement_group

from experts.base import DeviceLost
from pipeline.attempts import Attempts
from pipeline.errors import EndsRun, InputError, RunFailed
from pipeline.parts import RunSpec
from pipeline.schemas import SAMPLES
from pipeline.train import train_discriminator
from pipeline.unit_workers import worker_class
from pipeline.units import Unit
from pipeline.worker import Shard

log = logging.getLogger(__name__)

MAX_TRAIN_RETRIES = 3
WAIT_FOR_WORKERS_S = 600
"""How long a wave may wait for room for its workers, as when a cluster has to grow first."""

_SAMPLE = pa.struct([pa.field(field.name, field.type) for field in SAMPLES])
_IMAGE = pa.struct([("image", pa.string()), ("encoded", pa.large_binary())])


@contextmanager
def ray_session(address: str | None, waves: list[list[Unit]]) -> Iterator[None]:
    """A Ray session: on the cluster at `address` or in RAY_ADDRESS, else a local one; ends with the block.

    A local session has as many logical CPUs as the largest wave asks for: they only bound how many workers start, and
    pools that want more than there are would never start.

    Raises:
        InputError: no cluster at the address, or the waves need GPUs that this machine lacks.
        RunFailed: a Ray error inside the block; an `EndsRun` of a worker is raised as what it is.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cpus = math.ceil(max(sum(unit.pool.workers * unit.pool.cpus for unit in wave) for wave in waves))
            ray.init(address="local", num_cpus=max(os.cpu_count() or 1, cpus + 1), include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"ADDRESS '{address or 'local'}': Ray cannot start there: {_last_line(error)}") from error
    try:
        if not address:
            _check_gpus(waves)
        yield
    except ray.exceptions.RayError as error:
        cause = _root_cause(error)
        for kind in EndsRun.__subclasses__():
            if isinstance(cause, kind):
                raise kind(_first_line(cause)) from error
        raise RunFailed(f"{type(cause).__name__}: {_first_line(cause)}") from error
    finally:
        ray.shutdown()


def _check_gpus(waves: list[list[Unit]]) -> None:
    there = ray.cluster_resources().get("GPU", 0)
    for wave in waves:
        asked = sum(unit.pool.workers * unit.pool.gpus for unit in wave)
        if asked > there:
            names = ", ".join(unit.name for unit in wave if unit.pool.gpus)
            raise InputError(
                f"{names} ask for {asked:g} GPUs, this machine has {there:g}; lower their pools in the profile"
            )


def _root_cause(error: BaseException) -> BaseException:
    while cause := getattr(error, "cause", None) or error.__cause__:
        # Ray Data's own wrapper around an error of Ray Core says nothing.
        if isinstance(cause, SystemException):
            break
        error = cause
    return error


def _first_line(error: BaseException) -> str:
    """Ray Data appends its own advice to the message of an error."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no message"


def run_wave(spec: RunSpec, units: list[Unit], shards: list[int]) -> Iterator[tuple[int, int]]:
    """Streams shards through the units' pools; yields each shard's number and rejects when the last unit is done.

    The first unit is `samples`: where it is committed it fetches its rows and images for the others.

    Raises:
        RunFailed: there is no room for the workers.
        ray.exceptions.RayError: a worker cannot start, or storage fails; what is committed stays.
    """
    configure_ray_data()
    wait_for_room(units)
    attempts = Attempts.remote()  # type: ignore[attr-defined]
    dataset: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
    )
    for unit in units:
        dataset = dataset.map_batches(
            ShardMapper,
            fn_constructor_args=(spec, unit.name, attempts, unit is units[-1]),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=unit.pool.workers),
            num_cpus=unit.pool.cpus,
            num_gpus=unit.pool.gpus,
        )
    for row in dataset.iter_rows():
        yield row["shard"], row["rejects"]


def configure_ray_data() -> None:
    """Sets what holds for all that Ray Data does in this session: it says nothing, and errors come as what they are."""
    _keep_traces_to_the_log_file()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.actor_init_retry_on_errors = False
    # Else it comes wrapped in an error of Ray Data's, without what it was.
    context.raise_original_map_exception = True
    # Ray Data would wait for the workers of one unit before it starts those of the next.
    context.wait_for_min_actors_s = -1


def wait_for_room(units: list[Unit]) -> None:
    """Waits until all workers of these units have room at once, as a cluster may have to grow first.

    Raises:
        RunFailed: they have none after WAIT_FOR_WORKERS_S.
    """
    asked = [{"CPU": unit.pool.cpus, "GPU": unit.pool.gpus} for unit in units for _ in range(unit.pool.workers)]
    bundles = [{name: amount for name, amount in bundle.items() if amount} for bundle in asked if any(bundle.values())]
    if not bundles:
        return
    room = placement_group(bundles)
    placed = room.wait(WAIT_FOR_WORKERS_S)
    remove_placement_group(room)
    if not placed:
        names = ", ".join(unit.name for unit in units)
        raise RunFailed(
            f"after {WAIT_FOR_WORKERS_S} s the cluster has no room for the workers of {names}; lower their pools in "
            "the profile, or let the cluster grow"
        )


def _keep_traces_to_the_log_file() -> None:
    """Ray Data prints every error twice, with its own frames; the command says what went wrong in one line."""
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        # Ray's own, by its name: whoever embeds this may have added others.
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def train_on_ray(spec: RunSpec, unit: Unit) -> None:
    """Trains the run's discriminator as one Ray task and commits it."""
    task = ray.remote(train_discriminator).options(
        num_cpus=unit.pool.cpus, num_gpus=unit.pool.gpus, max_retries=MAX_TRAIN_RETRIES
    )
    ray.get(task.remote(spec))


class ShardMapper:
    """A unit's worker as Ray Data calls it: a table of one row in, a table of one row out."""

    def __init__(self, spec: RunSpec, unit: str, attempts: Any, last: bool) -> None:
        this = ray.get_runtime_context().get_actor_id()
        self.unit, self.last = unit, last
        # Ray restarts an actor whose constructor raises, for ever; what a call raises ends the run with its reason.
        self.unusable: Exception | None = None
        try:
            ray.get(attempts.starting.remote(unit, this))
            self.worker = worker_class(unit)(spec, unit, attempts)
        except Exception as error:  # noqa: BLE001
            self.unusable = error
        except DeviceLost as error:
            self._die(error)
        ray.get(attempts.started.remote(this))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Works on the shard; the last unit hands on its number and rejects only."""
        if self.unusable:
            raise self.unusable
        try:
            with self.worker.meter.at_work():
                shard = self.worker.work(unpack(batch))
        except DeviceLost as error:
            self._die(error)
        progress = {"shard": [shard.number], "rejects": [shard.rejects]}
        return pa.table(progress) if self.last else pack(shard)

    def _die(self, error: DeviceLost) -> NoReturn:
        """What is lost stays lost in this process: Ray starts another, and `Attempts` counts the death."""
        log.error("%s: the device is lost, this worker ends: %s", self.unit, error)
        os._exit(1)


def pack(shard: Shard) -> pa.Table:
    """A shard as a Ray Data row: a table of one row with its samples and encoded images."""
    images = [{"image": image, "encoded": data} for image, data in shard.encoded.items()]
    columns = {
        "shard": pa.array([shard.number], pa.int64()),
        "rejects": pa.array([shard.rejects], pa.int64()),
        "samples": pa.array([shard.samples], pa.large_list(_SAMPLE)),
        "images": pa.array([images], pa.large_list(_IMAGE)),
    }
    return pa.table(columns)


def unpack(batch: pa.Table) -> Shard:
    """The shard of a Ray Data row; at the head of a wave the row has a number only."""
    (row,) = batch.to_pylist()
    encoded = {image["image"]: image["encoded"] for image in row.get("images", [])}
    return Shard(row["shard"], row.get("rejects", 0), row.get("samples", []), encoded)
