"""c. The pipeline's time against that of what a user would write, with the same experts on the same images."""

import json
import time
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from pipeline.benchmarks.inputs import annotate_command, write_manifest
from pipeline.benchmarks.page import Figure
from pipeline.benchmarks.processes import run_command

IMAGES = 90
PAIR_IMAGES = 30
"""For those who go pair by pair, and take minutes: a command's start weighs more in their rate, not less."""
INSTRUCTIONS = ("face", "orange suit", "cup", "the cat on the left", "a round thing", "the sky", "a spoon", "her hair")
"""Eight, as an image of RefCOCO has about seven."""
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")
SIDES = ((320, 240), (240, 300), (300, 300))
"""Widths and heights, in pixels, of the crops that the images are."""
RIVALS = {
    "pair-loop": ("a loop over pairs", PAIR_IMAGES, 3.0),
    "image-loop": ("a loop over images", IMAGES, None),
    "pair-ray": ("a Ray Data script over pairs", PAIR_IMAGES, 1.0),
    "image-ray": ("a Ray Data script over images", IMAGES, None),
}
"""What each is called, on how many images, and how many times as fast the pipeline should be."""


def measure(work: Path, profile: str) -> list[Figure]:
    """Rates of whole commands, their start included; the pipeline's also scores and labels, the others do not, which
    is why its last candidate has a figure too."""
    dataset = write_photos(work / "data", IMAGES)
    started = time.time()
    pipeline = run_command(annotate_command(dataset, Path(profile), work / "run"), work / "log.txt")
    markers = (work / "run/done/candidates").glob("*/part-*")
    grounded = max(marker.stat().st_mtime for marker in markers) - started
    pairs = IMAGES * len(INSTRUCTIONS)
    figures = [
        Figure(f"pairs a second of the pipeline, {IMAGES} images", pairs / pipeline.seconds),
        Figure("the same to its last candidate, without scores and labels", pairs / grounded),
    ]
    write_photos(work / "fewer", PAIR_IMAGES)
    for kind, (name, images, least) in RIVALS.items():
        data = work / ("data" if images == IMAGES else "fewer")
        command = ["-m", "pipeline.benchmarks.rival", kind, profile, str(data), str(work / kind)]
        usage = run_command(command, work / f"{kind}.txt")
        share = images / IMAGES
        figures += [
            Figure(
                f"{name}, {images} images: the pipeline is faster by",
                usage.seconds / pipeline.seconds / share,
                "times",
                least,
            ),
            Figure(f"{name}: the same to its last candidate", usage.seconds / grounded / share, "times"),
            Figure(f"{name}: processor seconds for each of the pipeline's", usage.cpu_s / pipeline.cpu_s / share),
        ]
    return figures


def write_photos(folder: Path, images: int) -> Path:
    """A manifest of crops of scikit-image's photos in `folder`, each with all the instructions."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOS]
    lines = []
    for k in range(images):
        photo, (width, height) = photos[k % len(photos)], SIDES[k % len(SIDES)]
        left = int(rng.integers(0, photo.width - width + 1))
        top = int(rng.integers(0, photo.height - height + 1))
        photo.crop((left, top, left + width, top + height)).save(folder / "images" / f"{k:02d}.png")
        lines.append(json.dumps({"image": f"{k:02d}.png", "instructions": INSTRUCTIONS}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return write_manifest(folder)
