"""Before a run: compares manifest and profile with what is committed, and refuses, or makes room for new work."""

from importlib.metadata import version
from typing import Any

from manifests.manifest import Manifest
from pipeline.config import Profile
from pipeline.errors import InputError
from pipeline.plan import PLAN_INDEX, Plan, committed_plan
from pipeline.store import (
    DISCRIMINATOR,
    LEDGER,
    RUN_FILE,
    RunStore,
    marker_file,
    rejects_file,
    table_file,
    table_folder,
)
from pipeline.units import Unit, compare, describe, differences

_SHOWN_CHANGES = 8
_VERSIONED = ("ivm-mix", "numpy", "opencv-python-headless", "pillow", "pyarrow", "pycocotools", "ray", "torch")


def run_description(manifest: Manifest, profile: Profile, limit: int | None, units: dict[str, Unit]) -> dict[str, Any]:
    """What run.json says: all that made the run, and nothing secret."""
    return {
        "manifest": manifest.model_dump(mode="json"),
        "profile": profile.model_dump(mode="json"),
        "limit": limit,
        "prompts": {prompt.name: prompt.hash for prompt in profile.instruct.prompts()},
        "units": describe(units),
        "versions": {package: version(package) for package in _VERSIONED},
    }


def changed_shards(old: Plan | None, new: Plan) -> list[int]:
    """Shards of the old plan that the new one cuts differently or no longer has."""
    if old is None:
        return []
    fresh = [shard.sha256 for shard in new.shards]
    return [k for k, shard in enumerate(old.shards) if k >= len(fresh) or shard.sha256 != fresh[k]]


def reconcile(
    store: RunStore, draft: RunStore, plan: Plan, units: dict[str, Unit], description: dict[str, Any], update: bool
) -> None:
    """Makes the run's plan and run.json those of this command, and drops the markers of what must be redone.

    `draft` holds the files of `plan` that are not yet in the run. Markers go first: killed anywhere in between, the
    next command finds old or new settings, and never a marker that says more than they do.

    Raises:
        InputError: committed work would become stale and `update` is not set; names what changed and what it redoes.
    """
    recorded = store.read_json(RUN_FILE) or {}
    redo = _Redo(store, recorded.get("units", {}), units, committed_plan(store), plan)
    if redo.refused and not update:
        raise InputError(_refusal(store, recorded, description, redo))
    redo.drop_markers()
    ledger = {key: value for key, value in recorded.items() if key == LEDGER}
    if recorded != description | ledger:
        store.write_json(RUN_FILE, description | ledger)
    _publish(store, draft, plan)


class _Redo:
    """What of the committed work falls: whole units, and single shards of the others."""

    def __init__(
        self, store: RunStore, recorded: dict[str, Any], units: dict[str, Unit], old_plan: Plan | None, plan: Plan
    ) -> None:
        self.store, self.units, self.shards = store, units, len(plan.shards)
        changes = compare(recorded, units)
        self.recut = changed_shards(old_plan, plan)
        self.replanned = old_plan is not None and old_plan.shards != plan.shards
        # What is learned from all pairs, and what that scores, follows any change of the manifest as a whole.
        learned = [name for name in units if DISCRIMINATOR in (name, *units[name].inputs)] if self.replanned else []
        self.whole = list(dict.fromkeys([*changes.stale, *changes.grown, *learned]))
        self.removed = [name for name in recorded if name not in units]
        self.committed = {name: store.part_files(f"done/{name}") for name in [*units, *self.removed]}
        self.refused = any(self.committed[name] for name in changes.stale) or (
            self.replanned and any(self.committed.values())
        )

    def counts(self) -> dict[str, int]:
        """Committed parts that fall, by unit."""
        falls = {name: files if name in self.whole else self._recut(name) for name, files in self.committed.items()}
        return {name: len(parts) for name, parts in falls.items() if parts}

    def _recut(self, name: str) -> list[str]:
        fallen = {marker_file(name, shard) for shard in self.recut}
        return [file for file in self.committed[name] if f"done/{name}/{file}" in fallen]

    def drop_markers(self) -> None:
        """Deletes the markers of what falls, and the files of units and shards that are no more."""
        self.store.delete(f"done/{name}/{file}" for name in self.whole for file in self.committed[name])
        self.store.delete(marker_file(name, shard) for name in self.units for shard in self.recut)
        for name in self.removed:
            for folder in (table_folder(name), f"rejects/{name}", f"done/{name}"):
                self.store.delete_folder(folder)
        for shard in (shard for shard in self.recut if shard >= self.shards):
            self.store.delete(file(name, shard) for name in self.units for file in (table_file, rejects_file))


def _publish(store: RunStore, draft: RunStore, plan: Plan) -> None:
    """Writes the plan's missing files, then its index, then removes files it no longer names."""
    there, wanted = {f"plan/{name}" for name in store.part_files("plan")}, set(plan.files)
    for file in sorted(wanted - there):
        store.write_table(file, draft.read_table(file))
    index = plan.model_dump_json(indent=2).encode()
    if store.read(PLAN_INDEX) != index:
        store.write(PLAN_INDEX, index)
    store.delete(there - wanted)


def _refusal(store: RunStore, recorded: dict[str, Any], description: dict[str, Any], redo: _Redo) -> str:
    told = [key for key in ("manifest", "profile", "limit", "prompts") if key in recorded]
    lines = [line for key in told for line in differences(recorded[key], description[key], key)]
    if not lines:
        lines = differences(recorded.get("units", {}), description["units"], "units")
    if redo.replanned and not any(line.startswith(("manifest", "limit", "profile.shard_pairs")) for line in lines):
        lines.append("the manifest's records")
    more = f" and {len(lines) - _SHOWN_CHANGES} more" if len(lines) > _SHOWN_CHANGES else ""
    counts = redo.counts().items()
    parts = ", ".join(f"{name} ({count} part{'s' if count != 1 else ''})" for name, count in counts)
    return (
        f"{store.output} holds work made with other settings. Changed: {'; '.join(lines[:_SHOWN_CHANGES])}{more}. "
        f"It would redo: {parts or 'nothing, and add new shards'}. Say --update (UPDATE=1) to do just that, "
        "--fresh (FRESH=1) to start over, or choose another OUTPUT"
    )
