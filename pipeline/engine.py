"""The Ray Data graph: one row is one shard, one actor pool per unit, units in waves."""

import gc
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.exceptions import SystemException
from ray.util.placement_group import placement_group, remove_placement_group

from experts.base import DeviceLost
from pipeline.attempts import session_attempts
from pipeline.config import Pool
from pipeline.errors import EndsRun, InputError, RoomLost, RunFailed
from pipeline.parts import RunSpec
from pipeline.schemas import SAMPLES
from pipeline.store import RunStore
from pipeline.termination import sigterm_kept
from pipeline.train import chosen_pairs, gather, train_discriminator
from pipeline.unit_workers import worker_class
from pipeline.units import Unit
from pipeline.waves import Node, cut_waves, share_out
from pipeline.worker import Shard

log = logging.getLogger(__name__)

MAX_TRAIN_RETRIES = 3
GATHERERS = 2
"""Tasks that gather the discriminator's examples: each starts a process, which on a small machine costs seconds."""
WAIT_FOR_WORKERS_S = 600
"""How long a wave may wait for room for its workers, as when a cluster has to grow first, or to replace a node."""
WATCH_ROOM_S = 10.0
IN_FLIGHT = 2
"""Shards of one worker: the one it works on, and one that is brought to it meanwhile. More make the last ones wait."""

_COLLECT_AFTER = 50_000
"""Objects, a few MB of rows."""

_SAMPLE = pa.struct([pa.field(field.name, field.type) for field in SAMPLES])
_IMAGE = pa.struct([("image", pa.string()), ("encoded", pa.large_binary())])


@contextmanager
def ray_session(address: str | None, waves: list[list[Unit]]) -> Iterator[None]:
    """A Ray session: on the cluster at `address` or in RAY_ADDRESS, else a local one; ends with the block.

    A local session has as many logical CPUs as the largest wave asks for: they only bound how many workers start, and
    pools that want more than there are would never start. SIGTERM does in it what it did before.

    Raises:
        InputError: no cluster at the address, or the waves need GPUs that this machine lacks.
        RunFailed: a Ray error inside the block; an `EndsRun` of a worker is raised as what it is.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with sigterm_kept():
            if address:
                ray.init(address=address, **quiet)
            else:
                cpus = math.ceil(max(sum(_most(unit.pool) * unit.pool.cpus for unit in wave) for wave in waves))
                ray.init(address="local", num_cpus=max(os.cpu_count() or 1, cpus + 1), include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"ADDRESS '{address or 'local'}': Ray cannot start there: {_last_line(error)}") from error
    except Exception as error:
        # A bare one, when its own processes are not up in time, as on a machine that is overloaded.
        raise RunFailed(f"Ray did not start: {_last_line(error)}") from error
    try:
        if not address:
            _check_gpus(waves)
        held = session_attempts()
        yield
        del held
    except ray.exceptions.RayError as error:
        cause = _root_cause(error)
        for kind in EndsRun.__subclasses__():
            if isinstance(cause, kind):
                raise kind(_first_line(cause)) from error
        raise RunFailed(f"{type(cause).__name__}: {_first_line(cause)}") from error
    finally:
        ray.shutdown()


def _most(pool: Pool) -> int:
    return pool.max_workers or pool.workers


def _check_gpus(waves: list[list[Unit]]) -> None:
    there = ray.cluster_resources().get("GPU", 0)
    for unit in (unit for wave in waves for unit in wave):
        asked = unit.pool.workers * unit.pool.gpus
        if asked > there:
            raise InputError(
                f"{unit.name} asks for {asked:g} GPUs, this machine has {there:g}; lower its pool in the profile"
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


def plan_waves(units: list[Unit], grows: bool = True) -> list[list[Unit]]:
    """Waves of the units, `samples` at the head of each, such that each wave fits on the cluster at once.

    The cluster is what it is now and, where it `grows`, what its autoscaler says that it can become; one that has no
    GPU now and does not say is taken to grow as far as is asked.
    """
    nodes = cluster_nodes()
    head, *others = units
    if grows:
        asked = math.ceil(sum(unit.pool.workers * unit.pool.gpus for unit in units))
        unknown = Node(math.inf, [1.0] * asked) if asked and not any(node.gpus for node in nodes) else None
        if more := room_to_grow(nodes) or unknown:
            nodes.append(more)
    return cut_waves(head, others, nodes)


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster, as if nothing ran on them."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [Node(resources.get("CPU", 0), [1.0] * int(resources.get("GPU", 0))) for resources in alive]


def room_to_grow(nodes: list[Node]) -> Node | None:
    """What can still come to these nodes, as if it were one node; None where the cluster's autoscaler does not say."""
    # Not public in Ray, but what Ray Train and Ray Data themselves ask.
    most = ray._private.state.state.get_max_resources_from_cluster_config()
    if not most:
        return None
    gpus = int(most.get("GPU", 0)) - sum(len(node.gpus) for node in nodes)
    return Node(max(0, most.get("CPU", 0) - sum(node.cpus for node in nodes)), [1.0] * gpus)


def run_wave(
    spec: RunSpec, units: list[Unit], shards: list[int], wait_s: float | None = None
) -> Iterator[tuple[int, int]]:
    """Streams shards through the units' pools; yields each shard's number and rejects when the last unit is done.

    The first unit is `samples`: where it is committed it fetches its rows and images for the others. The wave waits
    `wait_s`, by default WAIT_FOR_WORKERS_S, for room for all its workers and makes do with fewer if there is none.

    Raises:
        RunFailed: there is no room for a worker of each unit.
        RoomLost: a node was lost with workers that have had no room elsewhere for WAIT_FOR_WORKERS_S.
        ray.exceptions.RayError: a worker cannot start, or storage fails; what is committed stays.
    """
    configure_ray_data()
    workers = wait_for_room(units, wait_s)
    attempts = session_attempts()
    dataset: ray.data.Dataset = ray.data.from_items(
        [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
    )
    for unit in units:
        dataset = dataset.map_batches(
            ShardMapper,
            fn_constructor_args=(spec, unit.name, attempts, unit is units[-1]),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool_strategy(unit.pool, min(workers[unit.name], len(shards))),
            num_cpus=unit.pool.cpus,
            num_gpus=unit.pool.gpus,
        )
    with RoomWatch(attempts):
        for row in dataset.iter_rows():
            yield row["shard"], row["rejects"]


def pool_strategy(pool: Pool, workers: int) -> ActorPoolStrategy:
    """A pool that starts with `workers` at once, and may grow from there to what the profile allows."""
    # With a smaller minimum Ray Data ends workers before their first shard, and starts them again when they are missed.
    return ActorPoolStrategy(
        min_size=workers,
        max_size=max(workers, _most(pool)),
        initial_size=workers,
        max_tasks_in_flight_per_actor=IN_FLIGHT,
    )


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


def wait_for_room(units: list[Unit], wait_s: float | None = None) -> dict[str, int]:
    """Waits until all workers of these units have room at once, as a cluster may have to grow first; for `wait_s`
    seconds at most, by default WAIT_FOR_WORKERS_S.

    Returns:
        How many workers each unit is to start with, by its name: with what its pool may have beyond `workers`, as far
        as there is room; or with fewer, at least one each, where even `workers` had none in time.

    Raises:
        RunFailed: there is no room for one each.
    """
    wait_s = WAIT_FOR_WORKERS_S if wait_s is None else wait_s
    asked = [{"CPU": unit.pool.cpus, "GPU": unit.pool.gpus} for unit in units for _ in range(unit.pool.workers)]
    bundles = [{name: amount for name, amount in bundle.items() if amount} for bundle in asked if any(bundle.values())]
    placed = True
    if bundles:
        room = placement_group(bundles)
        placed = room.wait(wait_s)
        remove_placement_group(room)
    shared = share_out(units, cluster_nodes())
    if placed:
        return {unit.name: max(unit.pool.workers, (shared or {}).get(unit.name, 0)) for unit in units}
    fewer = [
        f"{shared[unit.name]} of {unit.pool.workers} of {unit.name}"
        for unit in units
        if shared and shared[unit.name] < unit.pool.workers
    ]
    # All would fit, and something else has the room: fewer workers would wait for it as well.
    if shared is None or not fewer:
        names = ", ".join(unit.name for unit in units)
        raise RunFailed(
            f"after {wait_s:g} s the cluster has no room for the workers of {names}; lower their pools in "
            "the profile, or let the cluster grow"
        )
    told = f"no room for all workers after {wait_s:g} s; going on with {', '.join(fewer)}"
    print(f"ivm-mix: {told}", file=sys.stderr, flush=True)
    return shared


class RoomWatch:
    """In the block: where a node is lost with its workers and nothing comes in its place, it ends with `RoomLost`.

    Ray would wait for room for them for ever, and with them for the shards they had begun.
    """

    def __init__(self, attempts: Any) -> None:
        self.attempts = attempts
        self.lost: list[str] = []
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="room-watch", daemon=True)

    def __enter__(self) -> None:
        self._watcher.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._watcher.join()
        # Ray may have made an error of its own of the interrupt.
        if self.lost and isinstance(error, KeyboardInterrupt | Exception):
            raise RoomLost(f"a node with workers of {', '.join(self.lost)} is gone, and none came in its place")

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_ROOM_S):
            try:
                units, seconds = ray.get(self.attempts.homeless.remote())
            except ray.exceptions.RayError:
                # The wave ends, well or not; what it ends with says more.
                return
            if units and seconds > WAIT_FOR_WORKERS_S:
                self.lost = units
                os.kill(os.getpid(), signal.SIGINT)
                return


def _keep_traces_to_the_log_file() -> None:
    """Ray Data prints every error twice, with its own frames; the command says what went wrong in one line."""
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        # Ray's own, by its name: whoever embeds this may have added others.
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def train_on_ray(spec: RunSpec, unit: Unit) -> None:
    """Trains the run's discriminator as one Ray task and commits it; others gather its examples before."""
    shards, store = range(len(spec.plan.shards)), RunStore(spec.output)
    pairs, step = chosen_pairs(spec, store), math.ceil(len(shards) / GATHERERS)
    gatherer = ray.remote(gather).options(num_cpus=unit.pool.cpus, max_retries=MAX_TRAIN_RETRIES)
    gathered = [gatherer.remote(spec, pairs, shards[k : k + step]) for k in range(0, len(shards), step)]
    task = ray.remote(train_discriminator).options(
        num_cpus=unit.pool.cpus, num_gpus=unit.pool.gpus, max_retries=MAX_TRAIN_RETRIES
    )
    ray.get(task.remote(spec, *gathered))


class ShardMapper:
    """A unit's worker as Ray Data calls it: a table of one row in, a table of one row out."""

    def __init__(self, spec: RunSpec, unit: str, attempts: Any, last: bool) -> None:
        this = ray.get_runtime_context().get_actor_id()
        self.unit, self.attempts, self.last = unit, attempts, last
        # Ray restarts an actor whose constructor raises, for ever; what a call raises ends the run with its reason.
        self.unusable: Exception | None = None
        try:
            ray.get(attempts.starting.remote(unit, this, ray.get_runtime_context().get_node_id()))
            self.worker = worker_class(unit)(spec, unit, attempts)
            _spare_the_collector()
        # Loading an expert runs third-party code, which may raise anything.
        except Exception as error:  # noqa: BLE001
            self.unusable = error
        except DeviceLost as error:
            self._die(error)
        ray.get(attempts.started.remote(this))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Works on the shard; the last unit hands on its number and rejects only."""
        if self.unusable:
            raise self.unusable
        # Ray tries a shard for ever; the map's arguments that would limit it are going to be removed.
        ray.get(self.attempts.taking.remote((self.unit, batch["shard"][0].as_py())))
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


def _spare_the_collector() -> None:
    """A shard is tens of thousands of rows without a cycle among them, which Python's collector would look through
    again and again: in `samples` that took a third of the processor time."""
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


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
