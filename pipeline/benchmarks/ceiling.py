"""b. How many pairs a second the engine takes where experts cost nothing, and its memory for few and many pairs."""

import time
from pathlib import Path

from pipeline.benchmarks.inputs import annotate_command, stand_in, write_dataset, write_profile
from pipeline.benchmarks.page import Figure
from pipeline.benchmarks.processes import Usage, run_command

FEW, MANY = 10_000, 100_000
INSTRUCTIONS = 10
SHARD_PAIRS = 500
"""Twice the default: a shard whose experts cost nothing is over in no time, and Ray takes its own for each."""
EXPERT = "none"


def measure(work: Path) -> list[Figure]:
    """One expert that finds nothing, two workers that load, on as many cores as there are."""
    few, _ = _annotate(work / "few", FEW)
    many, committed = _annotate(work / "many", MANY)
    grounded = MANY / committed[-1]
    steady = MANY * (1 - 1 / len(committed)) / (committed[-1] - committed[0])
    return [
        Figure("pairs a second to the last candidate, start-up and plan included", grounded, least=2500),
        Figure("pairs a second after the first shard", steady),
        Figure("pairs a second of the whole command, labels included", MANY / many.seconds),
        Figure("pairs per processor second of the whole command", MANY / many.cpu_s),
        Figure("peak memory of the driver", many.peak("pipeline annotate") / 2**20, "MiB"),
        Figure("peak memory of the largest worker", many.peak("MapWorker") / 2**20, "MiB"),
        Figure(
            f"the driver's, {MANY:,} pairs against {FEW:,}",
            many.peak("pipeline annotate") / few.peak("pipeline annotate"),
            most=1.2,
        ),
        Figure(f"a worker's, {MANY:,} pairs against {FEW:,}", many.peak("MapWorker") / few.peak("MapWorker"), most=1.2),
    ]


def _annotate(work: Path, pairs: int) -> tuple[Usage, list[float]]:
    """The command's usage, and the seconds from its start to each shard's commit by the expert, in order."""
    dataset = write_dataset(work / "data", pairs // INSTRUCTIONS, INSTRUCTIONS)
    pools = {"samples": {"workers": 2, "cpus": 0.25}, "scores": {"cpus": 0.25}, "labels": {"cpus": 0.25}}
    profile = write_profile(work / "profile.yaml", SHARD_PAIRS, {EXPERT: stand_in({"finds": False})}, pools=pools)
    started = time.time()
    usage = run_command(annotate_command(dataset, profile, work / "run"), work / "log.txt")
    markers = (work / "run/done/candidates" / EXPERT).iterdir()
    return usage, sorted(marker.stat().st_mtime - started for marker in markers)
