"""Remembers what each worker is at, so that a row which kills its process is known and a crash loop ends."""

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import RunFailed

MAX_ATTEMPTS = 10
"""How often work on a part may begin. Two deaths find an image that kills its process; the rest is for lost nodes."""
MAX_TAKEN = 30
"""How often a worker may take a shard to itself, done or not: shards lost on their way to the next unit included."""
MAX_STARTS = 3
"""How often a worker may begin to load its model, lost nodes not counted."""

PartId = tuple[str, int]
"""Unit and shard."""


@dataclass
class History:
    """How work on one part went so far: times begun, the node it is on, the image it is on, deaths by image.

    `unexplained` deaths hit the part as a whole. Of the `deaths`, `hung` were calls that took over so many seconds.
    """

    begun: int = 0
    node: str = ""
    image: str | None = None
    hanging: float | None = None
    unexplained: int = 0
    deaths: dict[str, int] = field(default_factory=dict)
    hung: dict[str, float] = field(default_factory=dict)

    @property
    def suspicious(self) -> bool:
        """Whether a process died of the part itself, so that it has to be done image by image."""
        return bool(self.unexplained or self.deaths)


@dataclass
class Worker:
    """A worker that Ray keeps, in one process after another: where it is, and times begun to load its model."""

    unit: str
    node: str
    starts: int = 0


@ray.remote(num_cpus=0)
class Attempts:
    """One actor per session. It dies with the driver: a driver that is killed blames no row for its own death."""

    def __init__(self) -> None:
        self.parts: dict[PartId, History] = {}
        self.taken: dict[PartId, int] = {}
        self.workers: dict[str, Worker] = {}
        self.lost_since: float | None = None

    def starting(self, unit: str, worker: str, node: str) -> None:
        """Called before a worker loads its model; `worker` is the same when Ray restarts it.

        Raises:
            RunFailed: it keeps dying there.
        """
        known = self.workers.setdefault(worker, Worker(unit, node))
        if known.starts and not is_alive(known.node):
            known.starts -= 1
        known.node = node
        known.starts += 1
        if known.starts > MAX_STARTS:
            raise RunFailed(f"a worker of {unit} died {MAX_STARTS} times while it started, as for lack of memory")

    def started(self, worker: str) -> None:
        """Called when a worker is ready."""
        self.workers[worker].starts = 0

    def taking(self, part: PartId) -> None:
        """Called before anything is done for a part.

        Raises:
            RunFailed: workers keep dying of it, if not at their work then as they hand it on.
        """
        self.taken[part] = self.taken.get(part, 0) + 1
        if self.taken[part] > MAX_TAKEN:
            raise RunFailed(f"the workers of {part[0]} died {MAX_TAKEN} times around shard {part[1]}")

    def begin(self, part: PartId, node: str) -> History:
        """Called when work on a part begins; says how it went before.

        Raises:
            RunFailed: it has begun too often.
        """
        history = self.parts.setdefault(part, History())
        # What was being done when its node was lost is not what the node was lost for.
        if history.begun and is_alive(history.node):
            self._blame(history)
        history.begun += 1
        history.node, history.image, history.hanging = node, None, None
        if history.begun > MAX_ATTEMPTS:
            raise RunFailed(f"the workers of {part[0]} died {MAX_ATTEMPTS} times on shard {part[1]}")
        return history

    def _blame(self, history: History) -> None:
        image = history.image
        if image is None:
            history.unexplained += 1
            return
        # The first death hit the part as a whole; the image that kills it again was its cause.
        history.deaths[image] = history.deaths.get(image, 0) + 1 + history.unexplained
        history.unexplained = 0
        if history.hanging is not None:
            history.hung[image] = history.hanging

    def working_on(self, part: PartId, image: str | None) -> None:
        """Called before an image once a part has seen a death, and with None after the last."""
        self.parts[part].image = image

    def hung(self, part: PartId, seconds: float) -> None:
        """Called before a process ends because a call did not come back within so many seconds."""
        self.parts[part].hanging = seconds

    def end(self, part: PartId) -> None:
        """Called when the part is committed."""
        self.parts.pop(part, None)

    def homeless(self) -> tuple[list[str], float]:
        """Units with a worker whose node is lost and that has no room elsewhere yet, and seconds since that is so."""
        alive = alive_nodes()
        lost = [name for name, worker in self.workers.items() if worker.node not in alive and _waits_for_room(name)]
        if not lost:
            self.lost_since = None
            return [], 0.0
        self.lost_since = self.lost_since or time.monotonic()
        return sorted({self.workers[name].unit for name in lost}), time.monotonic() - self.lost_since


def _waits_for_room(worker: str) -> bool:
    # Workers that Ray Data had no more use for are dead. Not public in Ray; what is needs its dashboard.
    return ray._private.state.actors(worker).get("State") == "RESTARTING"


def session_attempts() -> Any:
    """The session's `Attempts`, which lives as long as somebody holds it; its process takes seconds to start.

    It is beside the driver: it must not go with a node that is lost; the driver's ends the run anyway.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # A driver's names are its own, unless it says a namespace.
    options = Attempts.options(name="attempts", get_if_exists=True, scheduling_strategy=here)  # type: ignore[attr-defined]
    return options.remote()


def is_alive(node: str) -> bool:
    """Whether a node, by its id, is part of the cluster still."""
    return node in alive_nodes()


def alive_nodes() -> set[str]:
    """Ids of the cluster's nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
