"""Remembers what each worker is at, so that a row which kills its process is known and a crash loop ends."""

from dataclasses import dataclass, field

import ray

from pipeline.errors import RunFailed

MAX_ATTEMPTS = 10
"""How often work on a part may begin. Two deaths find an image that kills its process; the rest is for lost nodes."""
MAX_STARTS = 3
"""How often a worker may begin to load its model."""

PartId = tuple[str, int]
"""Unit and shard."""


@dataclass
class History:
    """How work on one part went so far: times begun, the image it is on, deaths by image."""

    begun: int = 0
    image: str | None = None
    unexplained: int = 0
    deaths: dict[str, int] = field(default_factory=dict)


@ray.remote(num_cpus=0)
class Attempts:
    """One actor per wave. It dies with the driver: a driver that is killed blames no row for its own death."""

    def __init__(self) -> None:
        self.parts: dict[PartId, History] = {}
        self.starts: dict[str, int] = {}

    def starting(self, unit: str, worker: str) -> None:
        """Called before a worker loads its model; `worker` is the same when Ray restarts it.

        Raises:
            RunFailed: it keeps dying there.
        """
        self.starts[worker] = self.starts.get(worker, 0) + 1
        if self.starts[worker] > MAX_STARTS:
            raise RunFailed(f"a worker of {unit} died {MAX_STARTS} times while it started, as for lack of memory")

    def started(self, worker: str) -> None:
        """Called when a worker is ready."""
        self.starts.pop(worker, None)

    def begin(self, part: PartId) -> History:
        """Called when work on a part begins; says how it went before.

        Raises:
            RunFailed: it has begun too often.
        """
        history = self.parts.setdefault(part, History())
        if history.begun and history.image is None:
            history.unexplained += 1
        elif history.image is not None:
            # The first death hit the part as a whole; the image that kills it again was its cause.
            history.deaths[history.image] = history.deaths.get(history.image, 0) + 1 + history.unexplained
            history.unexplained = 0
        history.begun += 1
        history.image = None
        if history.begun > MAX_ATTEMPTS:
            raise RunFailed(f"the workers of {part[0]} died {MAX_ATTEMPTS} times on shard {part[1]}")
        return history

    def working_on(self, part: PartId, image: str | None) -> None:
        """Called before an image once a part has seen a death, and with None after the last."""
        self.parts[part].image = image

    def end(self, part: PartId) -> None:
        """Called when the part is committed."""
        self.parts.pop(part, None)
