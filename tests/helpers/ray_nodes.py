"""A Ray cluster of several nodes on this machine, whose nodes can be added and killed. As a process of its own it reads
commands, a line each, and answers each with a line."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

# A node that was killed is found out in seconds, not in half a minute.
HEALTH_CHECK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 3,
}


class RayNodes:
    """The cluster at `address`: a head without GPUs, and nodes that the test adds by name."""

    def __init__(self, head_cpus: int) -> None:
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ray_nodes", str(head_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        )
        self.address: str = self._answer()

    def add(self, name: str, cpus: int, gpus: int) -> str:
        """Adds a node; returns its id."""
        return self._ask("add", name, cpus, gpus)

    def kill(self, name: str) -> None:
        """SIGKILL to the node's raylet and, with it, all that runs on the node."""
        self._ask("kill", name)

    def terminate(self, name: str) -> None:
        """SIGTERM to the node's raylet."""
        self._ask("terminate", name)

    def close(self) -> None:
        assert self._holder.stdin
        self._holder.stdin.close()
        self._holder.wait(timeout=60)

    def _ask(self, *words: Any) -> str:
        assert self._holder.stdin
        print(json.dumps(words), file=self._holder.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._holder.stdout
        return next(line for line in self._holder.stdout if line.startswith("ok ")).split(maxsplit=1)[1].strip()


def hold(head_cpus: int) -> None:
    """The cluster's process: it ends, with all nodes, at the end of its input."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": head_cpus, "include_dashboard": False, "_system_config": HEALTH_CHECK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: dict[str, Any] = {}
    print("ok", cluster.address, flush=True)
    for line in sys.stdin:
        command, name, *resources = json.loads(line)
        if command == "add":
            cpus, gpus = resources
            nodes[name] = cluster.add_node(num_cpus=cpus, num_gpus=gpus)
        elif command == "kill":
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
            print("ok killed", flush=True)
            continue
        else:
            raylet = nodes[name].all_processes["raylet"][0].process
            raylet.send_signal(signal.SIGTERM)
            raylet.wait(timeout=60)
            print("ok terminated", flush=True)
            continue
        print("ok", nodes[name].node_id, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    hold(int(sys.argv[1]))
