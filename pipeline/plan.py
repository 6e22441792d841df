"""The plan: cuts a manifest into shards, the same ones each time, in flat memory."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from pydantic import BaseModel, ValidationError

from manifests.grouping import DiskGroups
from manifests.manifest import Manifest, open_reader
from manifests.records import BadRecord, Record
from pipeline.errors import DuplicatePair, InputError, validation_problem
from pipeline.progress import progress
from pipeline.schemas import LABELLED, PLAN, UNLABELLED, to_table
from pipeline.store import RunStore, plan_file

PLAN_INDEX = "plan/plan.json"
PAIR_DIGEST_BYTES = 16
_NO_VALUES = dict.fromkeys(PLAN.names)


class PlanShard(BaseModel):
    """One shard of the plan: how many pairs it has, bad records included, and the checksum of its rows."""

    pairs: int
    sha256: str


class Plan(BaseModel):
    """`plan/plan.json`. `source` is the checksum of all it was made from, None where only rereading tells."""

    source: str | None
    shards: list[PlanShard]

    @property
    def pairs(self) -> int:
        """Pairs of all shards, bad records included."""
        return sum(shard.pairs for shard in self.shards)

    @property
    def files(self) -> list[str]:
        """The files of the shards' rows, relative to the run."""
        return [plan_file(k, shard.sha256) for k, shard in enumerate(self.shards)]


def committed_plan(store: RunStore) -> Plan | None:
    """The plan a run has, or None.

    Raises:
        InputError: it is of another version of this package, or damaged.
    """
    index = store.read_json(PLAN_INDEX)
    try:
        return None if index is None else Plan.model_validate(index)
    except ValidationError as error:
        path = store.path(PLAN_INDEX)
        raise InputError(f"{path}: {validation_problem(error)}; the run is of another version: say --fresh") from error


def pair_uuid(dataset: str, image: str, instruction: str) -> str:
    """Stable id of a pair: 32 hex digits of BLAKE2b over dataset, image and instruction."""
    text = "\0".join((dataset, image, instruction))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=PAIR_DIGEST_BYTES).hexdigest()


def make_plan(
    manifest: Manifest, shard_pairs: int, limit: int | None, draft: RunStore, source: str | None = None
) -> Plan:
    """Writes the plan's shards to `draft`, a store on local disk, and returns its index.

    `source` is what `plan_source` said before: an annotation file that grows meanwhile must not look read.

    A shard closes at the first image that brings it to `shard_pairs`; images come in the order the manifest first names
    them and are never split. So the shards before a change in the manifest stay as they were.

    Raises:
        InputError: an annotation file cannot be read, or the manifest names no pair at all.
    """
    shards: list[PlanShard] = []
    for rows in _cut(_images(manifest, limit), shard_pairs):
        sha256 = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        draft.write_table(plan_file(len(shards), sha256), to_table(rows, PLAN))
        shards.append(PlanShard(pairs=len(rows), sha256=sha256))
    if not shards:
        where = ", ".join(manifest.annotations) or f"dataset '{manifest.name}'"
        raise InputError(f"{where}: no image-instruction pair found; check the manifest")
    return Plan(source=source, shards=shards)


def plan_source(manifest: Manifest, shard_pairs: int, limit: int | None) -> str | None:
    """Checksum of manifest, annotation files and limits; None where a reader generates its records.

    Raises:
        InputError: an annotation file is missing or unreadable.
    """
    source = open_reader(manifest).fingerprint()
    if source is None:
        return None
    return hashlib.sha256(f"{manifest.model_dump_json()} {shard_pairs} {limit} {source}".encode()).hexdigest()


def _images(manifest: Manifest, limit: int | None) -> Iterator[list[dict[str, Any]]]:
    """Plan rows of one image at a time."""
    records = islice(open_reader(manifest).records(), limit)
    with DiskGroups() as groups:
        for number, record in enumerate(progress("plan", "pairs", records)):
            # A bad record has no image to share; a key of its own keeps it a group of one.
            key = record.image if isinstance(record, Record) else f"\0{number}"
            groups.add(key, record)
        for _, grouped in groups:
            yield _rows(manifest, grouped)


def _rows(manifest: Manifest, records: list[Record | BadRecord]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for record in records:
        row = _pair_row(manifest, record) if isinstance(record, Record) else _bad_row(manifest, record)
        if row["uuid"] in seen:
            message = f"the same image and instruction as pair {row['uuid']}"
            row |= {
                "uuid": None,
                "error": DuplicatePair.__name__,
                "message": message,
                "input": json.dumps(vars(record)),
            }
        elif row["uuid"]:
            seen.add(row["uuid"])
        rows.append(row)
    return rows


def _pair_row(manifest: Manifest, record: Record) -> dict[str, Any]:
    try:
        "".join((record.image, record.instruction, record.source, *record.wordings)).encode()
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair; no table can hold it.
        return _bad_row(manifest, BadRecord(f"its text is not valid Unicode: {error.reason}", asdict(record)))
    human_mask = None if manifest.branch == UNLABELLED else record.human_mask
    row = {
        **_NO_VALUES,
        "uuid": pair_uuid(manifest.name, record.image, record.instruction),
        "dataset": manifest.name,
        "source": record.source,
        "branch": UNLABELLED if human_mask is None else LABELLED,
        "image": record.image,
        "instruction": record.instruction,
        "wordings": list(record.wordings),
        "human_mask": human_mask,
    }
    if manifest.branch == LABELLED and human_mask is None:
        message = "the manifest's branch is 'labelled', but this record has no human mask"
        return {**row, "uuid": None, "error": BadRecord.__name__, "message": message, "input": json.dumps(row)}
    return row


def _bad_row(manifest: Manifest, record: BadRecord) -> dict[str, Any]:
    return {
        **_NO_VALUES,
        "dataset": manifest.name,
        "image": record.image,
        "error": BadRecord.__name__,
        "message": record.message,
        "input": json.dumps(record.input),
    }


def _cut(images: Iterator[list[dict[str, Any]]], shard_pairs: int) -> Iterator[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    for rows in images:
        shard.extend(rows)
        if len(shard) >= shard_pairs:
            yield shard
            shard = []
    if shard:
        yield shard
