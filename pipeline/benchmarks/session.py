"""Where benchmarks run: logical Ray nodes on this machine, commands that are killed, a server in place of an LLM."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.benchmarks.processes import descendants
from pipeline.errors import InputError, RunFailed

_EVERY_S = 0.05


@contextmanager
def logical_node(cpus: int, gpus: int) -> Iterator[str]:
    """The address of a Ray node with so many CPUs and GPUs, whatever the machine has; it ends with the block."""
    # Imported here because it starts slowly, and figures that need no Ray should not wait for it.
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": cpus, "num_gpus": gpus, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@contextmanager
def llm_server(latency: float, log: Path) -> Iterator[str]:
    """The base URL of the tests' stand-in for a language model, which takes `latency` seconds to answer.

    Raises:
        InputError: it does not start, as where there is no checkout with the tests.
    """
    command = [sys.executable, "-m", "tests.helpers.llm_server", "--latency", str(latency)]
    with log.open("wb") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert server.stdout
    try:
        if not (url := server.stdout.readline().strip()):
            raise InputError("bench a needs tests/helpers/llm_server.py: run it in a checkout of the repository")
        yield url
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def run_until(arguments: Sequence[str], log: Path, reached: Callable[[], bool]) -> float:
    """Runs `python arguments…` until it has `reached` something, and kills it there with all that it started (SIGKILL,
    as when its machine goes); returns the seconds that took.

    Raises:
        RunFailed: the command ended before.
    """
    # As in `run_command`.
    os.sync()
    started = time.monotonic()
    with log.open("wb") as file:
        command = subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=subprocess.STDOUT)
    try:
        while not reached():
            if command.poll() is not None:
                said = log.read_text(errors="replace").strip()[-2000:]
                raise RunFailed(f"'{' '.join(arguments)}' ended with status {command.returncode}: {said}")
            time.sleep(_EVERY_S)
        return time.monotonic() - started
    finally:
        for pid in descendants(command.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        command.wait()


def count_parts(folder: Path) -> int:
    """Committed parts of a unit, by its folder of markers."""
    # Not by pathlib, which would take a fifth of a core to look at thousands twenty times a second.
    return sum(entry.name.startswith("part-") for entry in os.scandir(folder)) if folder.exists() else 0
