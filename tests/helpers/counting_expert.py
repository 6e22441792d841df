"""An expert that notes each call in a file, takes its time, may wait for its fellows, and on a marked image kills its
process once, or hangs."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray

from experts.base import Candidate, ExpertOptions, Request
from tests.helpers.killing_expert import DEADLY, KillingExpert


class CountingOptions(ExpertOptions):
    """`notes`: the file; `seconds`: of each call; `together`: how many processes must have come before a call goes on;
    `marked`: what a first pixel of magenta does, dies_once or hangs."""

    notes: str
    seconds: float = 0.0
    together: int = 1
    marked: str = ""


class Call(NamedTuple):
    """A call: which image, by its sum, from when to when (Unix seconds), where; `end` is 0.0 where it did not end."""

    image: int
    begin: float
    end: float
    pid: int
    node: str


class CountingExpert(KillingExpert):
    Options = CountingOptions
    options: CountingOptions

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        self._wait_for_fellows()
        begin, node = time.time(), ray.get_runtime_context().get_node_id()
        call = Call(int(image.sum()), begin, 0.0, os.getpid(), node)
        self._note(call)
        if tuple(image[0, 0]) == DEADLY and self.options.marked == "hangs":
            time.sleep(600)
        once = Path(f"{self.options.notes}.died")
        if tuple(image[0, 0]) == DEADLY and self.options.marked == "dies_once" and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.options.seconds)
        self._note(call._replace(end=time.time()))
        return super().ground(np.zeros_like(image), requests)

    def _wait_for_fellows(self) -> None:
        notes = Path(self.options.notes)
        notes.with_name(f"{notes.name}.came-{os.getpid()}").touch()
        while len(list(notes.parent.glob(f"{notes.name}.came-*"))) < self.options.together:
            time.sleep(0.05)

    def _note(self, call: Call) -> None:
        with Path(self.options.notes).open("a") as file:
            file.write(json.dumps(call) + "\n")


def calls(notes: Path) -> list[Call]:
    """All calls so far, in their order; one that ended is there once, with its end."""
    lines: list[Any] = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    found = {call[:2] + call[3:]: call for call in (Call(*line) for line in lines)}
    return list(found.values())
