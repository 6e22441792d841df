"""Which parts of a run are committed and still stand: the one place that decides what is skipped and what is done."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from manifests.manifest import Manifest
from pipeline.config import Profile
from pipeline.plan import Plan
from pipeline.store import DISCRIMINATOR, Marker, RunStore
from pipeline.units import SAMPLES, Unit, fingerprints, units_of

MarkerOf = Callable[[str, int], Marker | None]


@dataclass(frozen=True)
class RunSpec:
    """What every process of a run knows. `retry`: the units whose committed rejects are to be tried again; `desk`: the
    Ray actor `pipeline.llm_desk.LlmDesk`, where there is a language model and work for it."""

    output: str
    manifest: Manifest
    profile: Profile
    plan: Plan
    retry: frozenset[str] = frozenset()
    desk: Any = None

    @cached_property
    def units(self) -> dict[str, Unit]:
        """The run's units. They travel with the spec: to make them a worker would import every expert's module."""
        return units_of(self.profile, self.manifest)


class Parts:
    """The parts of a run, judged by their markers: (unit, shard) is current, or is to be done."""

    def __init__(self, spec: RunSpec, marker_of: MarkerOf) -> None:
        self.spec = spec
        self.marker_of = marker_of
        self.units = spec.units
        self.fingerprints = fingerprints(self.units)

    def inputs_read(self, unit: Unit, shard: int) -> dict[str, str] | None:
        """Checksums of what the unit reads for a shard; None while an input is not committed.

        The discriminator reads everything and tracks nothing: a replayed reject does not retrain it, so that d stays
        comparable over the run; `reconcile` drops it when the profile or the manifest changes.
        """
        if unit.name == DISCRIMINATOR:
            return {}
        if unit.name == SAMPLES:
            return {"plan": self.spec.plan.shards[shard].sha256}
        read = {}
        for name in unit.inputs:
            marker = self.marker_of(name, 0 if name == DISCRIMINATOR else shard)
            if marker is None:
                return None
            read[name] = marker.checksum
        return read

    def stands(self, unit: Unit, marker: Marker | None) -> bool:
        """Whether a marker was written by this unit as it is configured now."""
        return marker is not None and marker.fingerprint == self.fingerprints[unit.name]

    def is_done(self, unit: Unit, shard: int) -> bool:
        """Whether nothing is to be done for a part."""
        marker = self.marker_of(unit.name, shard)
        if marker is None or not self.stands(unit, marker) or marker.read != self.inputs_read(unit, shard):
            return False
        return not (unit.name in self.spec.retry and marker.rejects)

    def pending(self, unit: Unit) -> list[int]:
        """Shards of which the unit has work left."""
        shards = range(1) if unit.name == DISCRIMINATOR else range(len(self.spec.plan.shards))
        return [shard for shard in shards if not self.is_done(unit, shard)]


class AllParts(Parts):
    """The parts as the driver sees them: every marker read at once, in `markers` by unit and shard."""

    def __init__(self, spec: RunSpec, store: RunStore) -> None:
        super().__init__(spec, lambda unit, shard: self.markers[unit].get(shard))
        self.markers = {name: store.markers(name) for name in self.units}

    def has_rejects(self, unit: Unit) -> bool:
        """Whether any part of the unit has rejects."""
        return any(marker.rejects for marker in self.markers[unit.name].values())
