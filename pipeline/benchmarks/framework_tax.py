"""a. How much of their time the experts' GPUs work, when all else has to keep up with them."""

import time
from pathlib import Path

from pipeline.benchmarks.inputs import annotate_command, stand_in, write_dataset, write_profile
from pipeline.benchmarks.page import Figure
from pipeline.benchmarks.processes import run_command
from pipeline.benchmarks.session import llm_server, logical_node
from pipeline.benchmarks.stand_in import all_busy, busy_share, read_log

FAST_S, SLOW_S = 0.02, 0.06
LATENCY_S = 0.2
SHARDS, SHARD_IMAGES, INSTRUCTIONS = 15, 50, 3


def measure(work: Path) -> list[Figure]:
    """Two experts on a GPU each, one three times slower, behind a language model that answers every question late.

    What the experts sleep counts as work; warmed up is the node when both have begun. Ray's nodes stand before, as on
    a cluster.
    """
    dataset = write_dataset(work / "data", SHARDS * SHARD_IMAGES, INSTRUCTIONS)
    logs = {name: work / name for name in ("fast", "slow")}
    for log in logs.values():
        log.mkdir()
    seconds = {"fast": FAST_S, "slow": SLOW_S}
    experts = {name: stand_in({"seconds": seconds[name], "log": str(logs[name])}, gpus=1) for name in seconds}
    with llm_server(LATENCY_S, work / "server.txt") as url, logical_node(cpus=4, gpus=2) as address:
        llm = {"base_url": url, "model": "stand-in", "api_key_env": "IVM_MIX_BENCH_KEY"}
        instruct = {"simplifier": "llm", "llm": llm}
        profile = write_profile(work / "profile.yaml", SHARD_IMAGES * INSTRUCTIONS, experts, instruct=instruct)
        command = annotate_command(dataset, profile, work / "run", "--address", address)
        started = time.time()
        run_command(command, work / "log.txt", {"IVM_MIX_BENCH_KEY": "none"})
    workers = {name: read_log(log) for name, log in logs.items()}
    busy = max(spells[0].start for pool in workers.values() for spells in pool)
    first = min((work / "run/done/candidates/fast").iterdir(), key=lambda path: path.stat().st_mtime)
    return [
        Figure(
            "busy share of the slowest expert's GPU",
            busy_share(workers["slow"], busy, all_busy(workers["slow"])[1]),
            least=0.95,
        ),
        Figure("from the command to all workers busy", busy - started, "s"),
        Figure("from the command to the first shard of an expert", first.stat().st_mtime - started, "s"),
    ]
