"""f. What a candidate takes on disk, and how fast a million of them are at hand in pandas."""

import io
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from pipeline.benchmarks.page import Figure
from pipeline.masks import encode_rle, mask_box
from pipeline.schemas import CANDIDATES, to_table
from pipeline.store import RunStore, table_file

HEIGHT, WIDTH = 480, 640
PARTS, ROWS = 200, 5_000
SAMPLED = 200
"""Masks that are also written as images: each format's mean settles much sooner than that."""
_JPEG_QUALITY = 90
_OUTLINE = 90


def measure(work: Path) -> list[Figure]:
    """A million candidates, see `measure_sizes`."""
    return measure_sizes(work, PARTS, ROWS)


def measure_sizes(work: Path, parts: int, rows: int) -> list[Figure]:
    """Candidates of photos of 640x480 with ragged outlines, `rows` different ones in each of so many parts."""
    rng = np.random.default_rng(0)
    sampled = [draw_mask(rng) for _ in range(min(rows, SAMPLED))]
    png = float(np.mean([_encoded(mask, "PNG") for mask in sampled]))
    jpeg = float(np.mean([_encoded(mask, "JPEG") for mask in sampled]))
    table = to_table([_candidate(k, draw_mask(rng)) for k in range(rows)], CANDIDATES)
    store = RunStore(str(work / "run"))
    for part in range(parts):
        store.write_table(table_file("candidates/drawn", part), _of_part(table, part))
    folder = work / "run" / "candidates"
    stored = sum(file.stat().st_size for file in folder.rglob("*.parquet")) / (parts * rows)
    loaded, load_s = _timed(lambda: pd.read_parquet(folder, columns=["uuid", "score", "area", "phrase"]))
    _, filter_s = _timed(lambda: loaded[(loaded["score"] > 0.9) & (loaded["area"] < 0.5)])
    kept, masks_s = _timed(lambda: pd.read_parquet(folder, filters=[("score", ">", 0.9), ("area", "<", 0.5)]))
    return [
        Figure("a candidate in Parquet, all columns", stored, "bytes"),
        Figure("its mask as a PNG of 1 bit, times that", png / stored),
        Figure(f"its mask as a grey JPEG of quality {_JPEG_QUALITY}, times that", jpeg / stored),
        Figure(f"pandas loads {parts * rows:,} candidates without masks", load_s, "s"),
        Figure("and filters them by score and area", filter_s, "s"),
        Figure(f"pandas loads only the {len(kept):,} that pass, with masks", masks_s, "s"),
    ]


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    """Bool (HEIGHT, WIDTH): a filled outline around a centre, its radius wavy and rough as segmenters leave it."""
    angles = np.linspace(0, 2 * np.pi, _OUTLINE, endpoint=False)
    waves = sum(rng.normal(0, 0.25 / k) * np.cos(k * angles + rng.uniform(0, 7)) for k in range(1, 6))
    radius = rng.uniform(25, 160) * np.clip(1 + waves + rng.normal(0, 0.03, _OUTLINE), 0.2, None)
    centre = rng.uniform((80, 60), (WIDTH - 80, HEIGHT - 60))
    points = centre + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius[:, None]
    return cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points.round().astype(np.int32)], 1).astype(bool)


def _encoded(mask: np.ndarray, image_format: str) -> int:
    buffer = io.BytesIO()
    image = Image.fromarray(mask) if image_format == "PNG" else Image.fromarray(mask.astype(np.uint8) * 255)
    image.save(buffer, image_format, quality=_JPEG_QUALITY, optimize=True)
    return len(buffer.getvalue())


def _candidate(k: int, mask: np.ndarray) -> dict[str, Any]:
    return {
        "uuid": "",
        "candidate_id": "",
        "expert_version": "drawn@1",
        "phrase": f"the thing number {k % 997}",
        "box": mask_box(mask),
        "score": k % 1000 / 1000,
        "area": float(mask.mean()),
        "mask": encode_rle(mask),
        "heatmap": None,
    }


def _of_part(table: pa.Table, part: int) -> pa.Table:
    """The table with ids that no other part has, as long and as random as real ones."""
    ids = np.random.default_rng(part).bytes(16 * len(table)).hex()
    uuids = [ids[32 * k : 32 * k + 32] for k in range(len(table))]
    named = [f"{uuid}/drawn/0" for uuid in uuids]
    for column, values in (("uuid", uuids), ("candidate_id", named)):
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), pa.array(values))
    return table


def _timed(work: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started
