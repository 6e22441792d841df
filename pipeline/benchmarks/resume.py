"""e. How soon a large run that was killed near its end goes on."""

from pathlib import Path

from pipeline.benchmarks.inputs import annotate_command, stand_in, write_dataset, write_profile
from pipeline.benchmarks.page import Figure
from pipeline.benchmarks.session import count_parts, run_until

SHARDS = 4000
DONE = 0.99
EXPERT = "none"


def measure(work: Path) -> list[Figure]:
    """A run is killed when 99 % of them have been through the expert, and started again."""
    dataset = write_dataset(work / "data", SHARDS, 1)
    pools = {"samples": {"workers": 2, "cpus": 0.25}, "scores": {"cpus": 0.25}, "labels": {"cpus": 0.25}}
    profile = write_profile(work / "profile.yaml", 1, {EXPERT: stand_in({"finds": False})}, pools=pools)
    command = annotate_command(dataset, profile, work / "run")
    markers = work / "run/done/candidates" / EXPERT
    first = run_until(command, work / "first.txt", lambda: count_parts(markers) >= DONE * SHARDS)
    before = count_parts(markers)
    again = run_until(command, work / "again.txt", lambda: count_parts(markers) > before)
    return [
        Figure(f"from the command to the first new shard, {before:,} of {SHARDS:,} shards done", again, "s", most=30),
        Figure("shards a second before that, start-up included", before / first),
    ]
