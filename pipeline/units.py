"""The units of a run, what each reads, and its fingerprint: what decides whether committed work still stands."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from manifests.manifest import Manifest
from pipeline.config import Pool, Profile
from pipeline.store import DISCRIMINATOR

SAMPLES, SCORES, LABELS = "samples", "scores", "labels"
CANDIDATES_PREFIX = "candidates/"

STAGE_VERSIONS = {SAMPLES: 2, DISCRIMINATOR: 3, SCORES: 1, LABELS: 1}
"""Raised when a stage's code gives another output for the same input, so that old and new parts never mix."""


@dataclass(frozen=True)
class Unit:
    """One unit: `config` is all that determines its output besides what its `inputs` give it."""

    name: str
    inputs: tuple[str, ...]
    config: dict[str, Any]
    pool: Pool

    @property
    def expert(self) -> str | None:
        """The expert's name in the profile, for a candidates unit."""
        return self.name.removeprefix(CANDIDATES_PREFIX) if self.name.startswith(CANDIDATES_PREFIX) else None


def units_of(profile: Profile, manifest: Manifest) -> dict[str, Unit]:
    """Units by name, each after those it reads."""
    pools = profile.pools
    loaded = {
        **profile.instruct.identity(),
        "prompts": {prompt.name: prompt.hash for prompt in profile.instruct.prompts()},
        # The plan names images and masks below these roots; another root is other images.
        **manifest.model_dump(include={"reader", "images", "masks", "options"}),
    }
    units = [_staged(SAMPLES, (), loaded, pools.samples)]
    for name, entry in profile.experts.items():
        config = {
            "expert": entry.expert,
            "options": profile.expert_options(name).identity(),
            "keep": entry.keep.model_dump(),
            "version": entry.version,
        }
        units.append(Unit(f"{CANDIDATES_PREFIX}{name}", (SAMPLES,), config, entry.pool))
    candidates = tuple(unit.name for unit in units[1:])
    weight = {"weight": profile.weight.model_dump()}
    fused = weight | {"fusion": profile.fusion.model_dump()}
    if given := profile.discriminator_from:
        # It is what it is, wherever it was copied from and whatever this run holds.
        units.append(_staged(DISCRIMINATOR, (), {"id": given.id}, pools.discriminator))
    else:
        learned = profile.discriminator.identity()
        units.append(_staged(DISCRIMINATOR, (SAMPLES, *candidates), learned, pools.discriminator))
    units += [
        _staged(SCORES, (SAMPLES, *candidates, DISCRIMINATOR), weight, pools.scores),
        _staged(LABELS, (SAMPLES, *candidates, DISCRIMINATOR, SCORES), fused, pools.labels),
    ]
    return {unit.name: unit for unit in units}


def _staged(name: str, inputs: tuple[str, ...], config: dict[str, Any], pool: Pool) -> Unit:
    return Unit(name, inputs, config | {"version": STAGE_VERSIONS[name]}, pool)


def fingerprints(units: dict[str, Unit]) -> dict[str, str]:
    """SHA-256 of each unit's config and its inputs' fingerprints."""
    prints: dict[str, str] = {}
    for unit in units.values():
        content = {"config": unit.config, "inputs": {name: prints[name] for name in unit.inputs}}
        prints[unit.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return prints


@dataclass(frozen=True)
class Changes:
    """How a run's units differ from those committed in it.

    `stale`: configured differently, fed by a stale unit, or no longer in the profile: redone only with `--update`.
    `grown`: what they read has gained a unit; they are redone without asking, since nothing they say becomes wrong.
    """

    stale: tuple[str, ...]
    grown: tuple[str, ...]


def compare(recorded: dict[str, Any], units: dict[str, Unit]) -> Changes:
    """Changes of `units` against `recorded`, the `units` of a run.json: {name: {"config", "inputs"}}."""
    stale = [name for name in recorded if name not in units]
    grown: list[str] = []
    for name, unit in units.items():
        old = recorded.get(name)
        if old is None:
            continue
        if old["config"] != unit.config or set(old["inputs"]) & set(stale):
            stale.append(name)
        elif set(unit.inputs) - set(old["inputs"]) or set(unit.inputs) & set(grown):
            grown.append(name)
    return Changes(tuple(stale), tuple(grown))


def describe(units: dict[str, Unit]) -> dict[str, Any]:
    """Units as run.json records them, for `compare`."""
    return {name: {"config": unit.config, "inputs": list(unit.inputs)} for name, unit in units.items()}


def differences(old: Any, new: Any, field: str = "") -> list[str]:
    """Leaves that differ between two JSON values, as `field.name: old → new`."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{field}.{key}" if field else str(key))
        ]
    return [f"{field}: {_brief(old)} → {_brief(new)}"]


def _brief(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
