"""A command and all processes that it starts: what they took of the processors and of memory, read from /proc."""

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunFailed

_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY_S = 0.5


@dataclass
class Process:
    """What one process has had so far: its `name`, processor seconds, and the most memory at one time in bytes."""

    name: str
    cpu_s: float = 0.0
    peak: int = 0


@dataclass(frozen=True)
class Usage:
    """One command from start to end; `output` is its standard output and error."""

    seconds: float
    processes: list[Process]
    output: str

    @property
    def cpu_s(self) -> float:
        """Processor seconds of the command and all that it started."""
        return sum(process.cpu_s for process in self.processes)

    def peak(self, named: str) -> int:
        """Most bytes that one of the processes whose name has `named` in it held at one time."""
        return max(process.peak for process in self.processes if named in process.name)


def run_command(arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Usage:
    """Runs `python arguments…` to its end, its output in the file `log`.

    Raises:
        RunFailed: its exit status is not 0.
    """
    # Else the command's own commits would wait for what was written before, for it to read.
    os.sync()
    started = time.monotonic()
    with log.open("wb") as file:
        command = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(environment or {}),
        )
        watched = _Watch(command.pid)
        status = command.wait()
        seconds = time.monotonic() - started
        processes = watched.stop()
    output = log.read_text(errors="replace")
    if status:
        raise RunFailed(f"'{' '.join(arguments)}' ended with status {status}: {output.strip()[-2000:]}")
    return Usage(seconds, processes, output)


class _Watch:
    """Looks at a process and its descendants now and then until it is stopped."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[tuple[int, str], Process] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def stop(self) -> list[Process]:
        self._stopped.set()
        self._thread.join()
        return list(self._seen.values())

    def _look_on(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            for pid in descendants(self._root):
                self._look_at(pid)

    def _look_at(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return
        # Fields 14, 15 and 22 of proc_pid_stat(5); a number of a process may come again, with another start time.
        process = self._seen.setdefault((pid, stat[19]), Process(name))
        process.name = name or process.name
        process.cpu_s = (int(stat[11]) + int(stat[12])) / _TICKS
        fields = dict(line.split(":", 1) for line in status.splitlines())
        process.peak = max(process.peak, int(fields.get("VmHWM", "0 kB").split()[0]) * 1024)


def descendants(root: int) -> list[int]:
    """A process and all that descend from it, as they are now."""
    children = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children[found[-1]]
    return found
