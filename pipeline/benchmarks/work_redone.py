"""g. How much work is done twice when a run is killed and started again."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.benchmarks.inputs import annotate_command, stand_in, write_dataset, write_profile
from pipeline.benchmarks.page import Figure
from pipeline.benchmarks.processes import run_command
from pipeline.benchmarks.session import count_parts, run_until
from pipeline.benchmarks.stand_in import Spell, read_log

WORKERS = 2
SECONDS = 0.1
SHARDS, SHARD_IMAGES = 24, 10
KILLED_AT = 9


def measure(work: Path) -> list[Figure]:
    """A run with two workers is killed in the midst of it; what counts is what they log, to the image."""
    (work / "log").mkdir()
    dataset = write_dataset(work / "data", SHARDS * SHARD_IMAGES, 1)
    expert = stand_in({"seconds": SECONDS, "log": str(work / "log")}, workers=WORKERS)
    profile = write_profile(work / "profile.yaml", SHARD_IMAGES, {"sleeper": expert})
    command = annotate_command(dataset, profile, work / "run")
    markers = work / "run/done/candidates/sleeper"
    run_until(command, work / "first.txt", lambda: count_parts(markers) >= KILLED_AT)
    before = count_parts(markers)
    run_command(command, work / "again.txt")
    redone = images_redone(read_log(work / "log")) / SHARD_IMAGES
    what = f"work redone after a kill with {before} of {SHARDS} shards done, {WORKERS} workers"
    return [Figure(what, redone, "shards", most=WORKERS)]


def images_redone(workers: Sequence[Sequence[Spell]]) -> int:
    """How often an image was worked on that had been already."""
    images = [spell.image for spells in workers for spell in spells]
    return len(images) - len(set(images))
