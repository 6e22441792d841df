"""`ivm-mix bench`: what batching brings: the pipeline's time against that of a plain loop over pairs."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skimage.data
import yaml
from PIL import Image

from pipeline.annotate import Job, annotate
from pipeline.config import load_expert, load_profile
from pipeline.errors import RunFailed
from pipeline.parts import AllParts, RunSpec
from pipeline.status import open_run
from pipeline.store import RunStore, table_file
from pipeline.units import CANDIDATES_PREFIX, SAMPLES
from stages.base import Output, Row
from stages.ground import Ground

IMAGES, INSTRUCTIONS = 50, ("face", "orange suit", "cup", "the cat on the left", "a round thing")
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
SIDES = ((320, 240), (240, 300), (300, 300))
"""Widths and heights, in pixels, of the crops that the images are."""


def bench(profile: str) -> None:
    """Annotates 50 images of 5 instructions with the profile's experts, then asks the same experts pair by pair.

    Prints, per expert and in all, the seconds of the loop and those of the pipeline: the workers' per expert, and in
    all those of the whole command, Ray's start and every other stage included.
    """
    with tempfile.TemporaryDirectory(prefix="ivm-mix-bench-") as folder:
        dataset = write_dataset(Path(folder))
        started = time.perf_counter()
        annotate(Job(dataset=str(dataset), profile=profile, output=f"{folder}/run"))
        command_s = time.perf_counter() - started
        spec, store = open_run(f"{folder}/run")
        parts = AllParts(spec, store)
        encoded = {path.name: path.read_bytes() for path in (Path(folder) / "images").iterdir()}
        rows = [_compare(name, spec, store, parts, encoded) for name in load_profile(profile).experts]
    table = pd.DataFrame(rows)
    whole = {"expert": "all", "pipeline s": command_s, **table[["candidates", "loop s", "loop candidates"]].sum()}
    table = pd.concat([table, pd.DataFrame([whole])], ignore_index=True)
    table["times faster"] = table["loop s"] / table["pipeline s"]
    print(f"\n{IMAGES} images, {len(INSTRUCTIONS)} instructions each; 'all' is the whole command")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def _compare(name: str, spec: RunSpec, store: RunStore, parts: AllParts, encoded: dict[str, bytes]) -> dict[str, Any]:
    markers = parts.markers[f"{CANDIDATES_PREFIX}{name}"].values()
    samples = [row for shard in parts.markers[SAMPLES] for row in _rows(store, shard)]
    ground = Ground(name, load_expert(spec.profile, name), "", spec.profile.experts[name].keep)
    started = time.perf_counter()
    output = Output()
    for sample in samples:
        output.add(ground.run([sample], {sample["image"]: encoded[sample["image"]]}))
    loop_s = time.perf_counter() - started
    if output.rejects:
        raise RunFailed(f"expert '{name}' failed in the loop: {output.rejects[0]['message']}")
    return {
        "expert": name,
        "pipeline s": sum(marker.seconds for marker in markers),
        "candidates": sum(marker.rows for marker in markers),
        "loop s": loop_s,
        "loop candidates": len(output.rows),
    }


def _rows(store: RunStore, shard: int) -> list[Row]:
    return store.read_table(table_file(SAMPLES, shard)).to_pylist()


def write_dataset(folder: Path) -> Path:
    """A manifest of crops of scikit-image's photos in `folder`, each with all the instructions."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOS]
    lines = []
    for k in range(IMAGES):
        photo, (width, height) = photos[k % len(photos)], SIDES[k % len(SIDES)]
        left = int(rng.integers(0, photo.width - width + 1))
        top = int(rng.integers(0, photo.height - height + 1))
        photo.crop((left, top, left + width, top + height)).save(folder / "images" / f"{k:02d}.png")
        lines += [json.dumps({"image": f"{k:02d}.png", "instruction": instruction}) for instruction in INSTRUCTIONS]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    manifest = {"name": "bench", "reader": "jsonl", "images": "images", "annotations": "pairs.jsonl", "licence": "none"}
    (folder / "bench.yaml").write_text(yaml.safe_dump(manifest))
    return folder / "bench.yaml"
