"""What benchmarks annotate, and with which profile."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

SIDE = 32
"""Pixels: so few that decoding is not what is timed."""
STAND_IN = "pipeline.benchmarks.stand_in"
LIGHT = {"cpus": 0.25}
"""A pool that waits more than it works. Ray only counts these shares, and starts a worker where one is free."""


def write_dataset(folder: Path, images: int, instructions: int) -> Path:
    """Path of a manifest of drawn `images`, each with so many instructions; the first pixel is the image's number."""
    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    with (folder / "pairs.jsonl").open("w") as lines:
        for number in range(images):
            # OpenCV takes blue first.
            pixels[0, 0] = number >> 16, number >> 8 & 255, number & 255
            (folder / "images" / f"{number:06d}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            first = number * instructions
            texts = [f"the red cup number {first + k} on the left of the table" for k in range(instructions)]
            lines.write(json.dumps({"image": f"{number:06d}.png", "instructions": texts}) + "\n")
    return write_manifest(folder)


def write_manifest(folder: Path) -> Path:
    """Path of the manifest of the folder `images` and the file `pairs.jsonl` beside it."""
    manifest = {"name": "bench", "reader": "jsonl", "images": "images", "annotations": "pairs.jsonl", "licence": "none"}
    (folder / "bench.yaml").write_text(yaml.safe_dump(manifest))
    return folder / "bench.yaml"


def write_profile(path: Path, shard_pairs: int, experts: dict[str, Any], **sections: Any) -> Path:
    """A profile that takes instructions as they are and has `LIGHT` pools, unless `sections` says else; its path."""
    profile = {
        "shard_pairs": shard_pairs,
        "instruct": {"simplifier": "verbatim"},
        "experts": experts,
        "pools": dict.fromkeys(("samples", "scores", "labels"), LIGHT),
    }
    # JSON is YAML, and has no anchors where the same pool comes twice.
    path.write_text(json.dumps(profile | sections))
    return path


def stand_in(options: dict[str, Any], **pool: float) -> dict[str, Any]:
    """A profile's entry of a stand-in of these options; see `pipeline.benchmarks.stand_in`."""
    return {"expert": STAND_IN, "options": options, "pool": LIGHT | pool}


def annotate_command(dataset: Path, profile: Path, output: Path, *more: str) -> list[str]:
    """Arguments of `python` that annotate."""
    given = ["--dataset", str(dataset), "--profile", str(profile), "--output", str(output)]
    return ["-m", "pipeline", "annotate", *given, *more]
