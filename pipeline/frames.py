"""For notebooks: a run's tables as pandas frames, its masks as arrays, its labels as pictures."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from manifests.manifest import Manifest, open_reader
from pipeline.errors import InputError
from pipeline.images import decode_image
from pipeline.masks import decode_rle
from pipeline.schemas import CANDIDATES, LABELS, REJECTS, SAMPLES, SCORES
from pipeline.store import RUN_FILE, RunStore, table_folder
from pipeline.units import CANDIDATES_PREFIX

MASK_COLOUR = (255, 40, 60)
MASK_OPACITY = 0.5

decode = decode_rle
"""A cell of a column `mask` or `human_mask` as a bool array (height, width)."""


_SCHEMAS = {"samples": SAMPLES, "candidates": CANDIDATES, "scores": SCORES, "labels": LABELS, "rejects": REJECTS}
TABLES = tuple(_SCHEMAS)


def read(run: str, table: str, uuid: str | None = None) -> pd.DataFrame:
    """A table of a run, its committed parts only: samples, candidates, scores, labels or rejects.

    `candidates` has the column `expert` beside those of the schema, `rejects` the column `unit`. With `uuid`, the
    rows of that pair only.

    Raises:
        InputError: there is no such run or table.
    """
    if table not in TABLES:
        raise InputError(f"no table '{table}': there are {', '.join(TABLES)}")
    store, description = _open(run)
    wanted = None if uuid is None else pc.field("uuid") == uuid
    parts = []
    for unit in description["units"]:
        folder = f"rejects/{unit}" if table == "rejects" else table_folder(unit)
        if folder.split("/")[0] != table:
            continue
        for marker in store.markers(unit).values():
            for file in marker.sha256:
                if file.startswith(f"{folder}/"):
                    parts.append(_with_origin(store.read_table(file, filters=wanted), table, unit))
    if not parts:
        return _with_origin(_SCHEMAS[table].empty_table(), table, "").to_pandas()
    return pa.concat_tables(parts).to_pandas()


def overlay(run: str, uuid: str, mask: np.ndarray | None = None) -> Image.Image:
    """The pair's image with a mask over it: the one given, bool (height, width), or else the pair's label.

    Raises:
        InputError: there is no such run, or no such pair in it.
        BadImage: the image can no longer be read.
    """
    _, description = _open(run)
    reader = open_reader(Manifest.model_validate(description["manifest"]))
    pixels = decode_image(reader.read(_row(run, "samples", uuid)["image"]))
    if mask is None:
        cell = _row(run, "labels", uuid)["mask"]
        mask = np.zeros(pixels.shape[:2], dtype=bool) if cell is None else decode_rle(cell)
    blended = pixels.astype(np.float32)
    blended[mask] = (1 - MASK_OPACITY) * blended[mask] + MASK_OPACITY * np.asarray(MASK_COLOUR)
    return Image.fromarray(blended.round().astype(np.uint8))


def _open(run: str) -> tuple[RunStore, dict[str, Any]]:
    store = RunStore(run)
    description = store.read_json(RUN_FILE)
    if description is None:
        raise InputError(f"{run}: no run here ({RUN_FILE} is missing); give the OUTPUT of a run")
    return store, description


def _row(run: str, table: str, uuid: str) -> pd.Series:
    rows = read(run, table, uuid)
    if rows.empty:
        raise InputError(f"{run}: no pair {uuid} in {table}")
    return rows.iloc[0]


def _with_origin(part: pa.Table, table: str, unit: str) -> pa.Table:
    if table == "candidates":
        return part.append_column("expert", pa.array([unit.removeprefix(CANDIDATES_PREFIX)] * len(part), pa.string()))
    if table == "rejects":
        return part.append_column("unit", pa.array([unit] * len(part), pa.string()))
    return part
