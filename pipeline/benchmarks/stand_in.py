"""A stand-in for a grounding model in benchmarks: it takes a given time for an image, and finds the same in each."""

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from experts.base import Candidate, Expert, ExpertOptions, Placement, Request


class StandInOptions(ExpertOptions):
    """`seconds` it sleeps for each image; `finds` a mask, or nothing; `log`: a folder where every worker notes when it
    was at which image."""

    seconds: float = Field(0.0, ge=0)
    finds: bool = True
    log: str | None = None


class StandIn(Expert):
    """Its log is one file per process with a line per image: start and end in Unix seconds, and the image's number as
    its first pixel tells it, see `pipeline.benchmarks.inputs`."""

    summary: ClassVar[str] = "a stand-in for benchmarks: the image's upper left quarter, after a given time"
    limits: ClassVar[str] = "looks at nothing"
    Options: ClassVar[type[ExpertOptions]] = StandInOptions

    options: StandInOptions

    def __init__(self, options: ExpertOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self._log = Path(self.options.log, f"{os.getpid()}.txt") if self.options.log else None

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        """Always the same."""
        return "1"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        """One mask per request, or none."""
        started = time.time()
        if self.options.seconds:
            time.sleep(self.options.seconds)
        if self._log:
            red, green, blue = image[0, 0].tolist()
            with self._log.open("a") as file:
                file.write(f"{started} {time.time()} {blue << 16 | green << 8 | red}\n")
        if not self.options.finds:
            return [[] for _ in requests]
        mask = np.zeros(image.shape[:2], dtype=bool)
        mask[: image.shape[0] // 2, : image.shape[1] // 2] = True
        return [[Candidate(mask, 0.5, request.phrases[0])] for request in requests]


@dataclass(frozen=True)
class Spell:
    """A worker's work on one image: `start` and `end` in Unix seconds, and the image's number."""

    start: float
    end: float
    image: int


def read_log(folder: Path) -> list[list[Spell]]:
    """The spells of each worker that got to work, in their order."""
    workers = defaultdict(list)
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            start, end, image = line.split()
            workers[file.name].append(Spell(float(start), float(end), int(image)))
    return list(workers.values())


def all_busy(workers: Sequence[Sequence[Spell]]) -> tuple[float, float]:
    """From when to when, in Unix seconds, every worker had begun and none was at its end."""
    return max(spells[0].start for spells in workers), min(spells[-1].end for spells in workers)


def busy_share(workers: Sequence[Sequence[Spell]], start: float, end: float) -> float:
    """Share in [0, 1] of the workers' time between `start` and `end` that they worked."""
    spells = [spell for spells in workers for spell in spells]
    worked = sum(max(0.0, min(spell.end, end) - max(spell.start, start)) for spell in spells)
    return worked / (end - start) / len(workers)
