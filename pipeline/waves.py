"""Which units run together, and with how many workers each: what fits on the nodes at once."""

import copy
from dataclasses import dataclass

from pipeline.config import Pool
from pipeline.units import Unit

_ROUNDING = 1e-6


@dataclass
class Node:
    """What is free on one node: CPUs, and the share in [0, 1] of each of its GPUs."""

    cpus: float
    gpus: list[float]

    def take(self, pool: Pool) -> bool:
        """Reserves what one worker asks for, as Ray does: a share is of one GPU. False if there is no room."""
        if self.cpus + _ROUNDING < pool.cpus:
            return False
        share = min(pool.gpus, 1.0)
        # The fullest first, so that whole ones stay for those who ask for whole ones.
        roomy = sorted((free, k) for k, free in enumerate(self.gpus) if free + _ROUNDING >= share)
        count = int(max(pool.gpus, 1)) if pool.gpus else 0
        if len(roomy) < count:
            return False
        for _, k in roomy[:count]:
            self.gpus[k] -= share
        self.cpus -= pool.cpus
        return True


def fit(units: list[Unit], nodes: list[Node]) -> bool:
    """Whether all workers of these units have room on the nodes at once; the largest are placed first."""
    free = copy.deepcopy(nodes)
    pools = [unit.pool for unit in units for _ in range(unit.pool.workers)]
    return all(_take(pool, free) for pool in sorted(pools, key=lambda pool: (-pool.gpus, -pool.cpus)))


def cut_waves(head: Unit, units: list[Unit], nodes: list[Node]) -> list[list[Unit]]:
    """Waves of `head` and as many of `units` as fit together, each unit in the first wave that has room for it.

    A unit that does not fit at all has a wave of its own.
    """
    waves: list[list[Unit]] = []
    for unit in units:
        for wave in waves:
            if fit([*wave, unit], nodes):
                wave.append(unit)
                break
        else:
            waves.append([head, unit])
    return waves or [[head]]


def share_out(units: list[Unit], nodes: list[Node]) -> dict[str, int] | None:
    """Workers of each unit by its name: one for each, then in turns up to its `workers`, then up to its `max_workers`,
    as long as the nodes have room; None where not even one of each has."""
    free = copy.deepcopy(nodes)
    largest_first = sorted(units, key=lambda unit: (-unit.pool.gpus, -unit.pool.cpus))
    if not all(_take(unit.pool, free) for unit in largest_first):
        return None
    counts = {unit.name: 1 for unit in units}
    for most in (
        {unit.name: unit.pool.workers for unit in units},
        {unit.name: unit.pool.max_workers or unit.pool.workers for unit in units},
    ):
        growing = list(units)
        while growing:
            growing = [unit for unit in growing if counts[unit.name] < most[unit.name] and _take(unit.pool, free)]
            for unit in growing:
                counts[unit.name] += 1
    return counts


def _take(pool: Pool, nodes: list[Node]) -> bool:
    return any(node.take(pool) for node in nodes)
