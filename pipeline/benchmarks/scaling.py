"""d. How much faster more workers of an expert are."""

from pathlib import Path

from pipeline.benchmarks.inputs import annotate_command, stand_in, write_dataset, write_profile
from pipeline.benchmarks.page import Figure
from pipeline.benchmarks.processes import run_command
from pipeline.benchmarks.session import logical_node
from pipeline.benchmarks.stand_in import Spell, all_busy, read_log

WORKERS = (1, 2, 4)
SECONDS = 0.05
SHARDS_PER_WORKER, SHARD_IMAGES, INSTRUCTIONS = 10, 30, 2


def measure(work: Path) -> list[Figure]:
    """The same expert, which sleeps, by 1, 2 and 4 workers of one GPU each, as many shards for every worker."""
    figures = []
    alone = 0.0
    with logical_node(cpus=4, gpus=max(WORKERS)) as address:
        for count in WORKERS:
            workers = _spells(work / str(count), count, address)
            rate = images_per_second(workers)
            alone = alone or rate
            if count == 1:
                continue
            whole = sum(map(len, workers)) / (
                max(spells[-1].end for spells in workers) - min(spells[0].start for spells in workers)
            )
            figures += [
                Figure(f"speed-up per worker, {count} workers, while all have work", rate / alone / count, least=0.9),
                Figure(f"the same from the first image to the last, {count} workers", whole / alone / count),
            ]
    return figures


def images_per_second(workers: list[list[Spell]]) -> float:
    """Images that were finished while all workers were busy, by the time that was."""
    start, end = all_busy(workers)
    return sum(start < spell.end <= end for spells in workers for spell in spells) / (end - start)


def _spells(work: Path, workers: int, address: str) -> list[list[Spell]]:
    (work / "log").mkdir(parents=True)
    images = SHARDS_PER_WORKER * workers * SHARD_IMAGES
    dataset = write_dataset(work / "data", images, INSTRUCTIONS)
    expert = stand_in({"seconds": SECONDS, "log": str(work / "log")}, workers=workers, gpus=1)
    profile = write_profile(work / "profile.yaml", SHARD_IMAGES * INSTRUCTIONS, {"sleeper": expert})
    run_command(annotate_command(dataset, profile, work / "run", "--address", address), work / "log.txt")
    return read_log(work / "log")
