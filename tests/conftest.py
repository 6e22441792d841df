"""Shared by the tests: a small dataset on disk, made of drawn images, as a user would have it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, settings
from PIL import Image

# How long an example takes is up to what else the machine does, and a run of the tests is to say something about the
# code, not about luck. `pytest --hypothesis-profile search` looks for what the same examples each time do not show.
settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("patient"), derandomize=False, max_examples=3000)
settings.load_profile("patient")

COLOURS = {"red": (205, 35, 40), "green": (40, 150, 60), "blue": (40, 70, 200), "yellow": (235, 205, 50)}


@dataclass
class Dataset:
    """A JSONL dataset in a folder: `manifest` is the YAML's path; call `write` after changing `lines`."""

    folder: Path
    lines: list[Any]
    name: str = "drawn"

    @property
    def manifest(self) -> str:
        return str(self.folder / "manifest.yaml")

    def write(self, **fields: Any) -> "Dataset":
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in self.lines]
        (self.folder / "pairs.jsonl").write_bytes(b"\n".join(texts) + b"\n")
        manifest = {
            "name": self.name,
            "reader": "jsonl",
            "images": "images",
            "annotations": "pairs.jsonl",
            "licence": "drawn by the tests",
        }
        Path(self.manifest).write_text(yaml.safe_dump(manifest | fields))
        return self


def draw(path: Path, colours: list[str], size: tuple[int, int] = (120, 90)) -> list[list[int]]:
    """Draws one square per colour, left to right on grey; returns their boxes x1, y1, x2, y2."""
    width, height = size
    rng = np.random.default_rng(sum(map(ord, path.name)))
    pixels = rng.normal(128, 4, (height, width, 3))
    boxes = []
    for k, colour in enumerate(colours):
        side = min(26, width // (len(colours) + 1))
        left = int((k + 0.5) * width / len(colours) - side / 2)
        top = int(rng.integers(10, height - side - 10))
        pixels[top : top + side, left : left + side] = np.array(COLOURS[colour]) + rng.normal(0, 4, (side, side, 3))
        boxes.append([left, top, left + side, top + side])
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return boxes


def make_drawn(parent: Path) -> Dataset:
    """Twelve images of two coloured squares, two pairs each, every second image labelled."""
    folder = parent / "data"
    (folder / "images").mkdir(parents=True)
    names = list(COLOURS)
    lines: list[Any] = []
    for k in range(12):
        colours = [names[k % 4], names[(k + 1) % 4]]
        boxes = draw(folder / "images" / f"{k:02d}.png", colours)
        for colour, box in zip(colours, boxes, strict=True):
            line: dict[str, Any] = {"image": f"{k:02d}.png", "instruction": f"the {colour} square"}
            lines.append(line | {"mask": {"box": box}} if k % 2 else line)
    return Dataset(folder, lines).write()


@pytest.fixture
def drawn(tmp_path: Path) -> Dataset:
    """A dataset of this test's own, see `make_drawn`."""
    return make_drawn(tmp_path)
