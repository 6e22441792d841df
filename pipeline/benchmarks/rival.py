"""What a user would write without this package: loops, and a Ray Data script, over the experts of a profile.

`python -m pipeline.benchmarks.rival KIND PROFILE FOLDER OUTPUT`, where FOLDER holds `pairs.jsonl` and `images`. What
they leave out: rows that fail, restarts, scores and labels.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from experts.base import Candidate, Expert, Request
from pipeline.config import load_expert, load_profile, pin_experts
from pipeline.masks import encode_rle
from pipeline.schemas import RLE

CANDIDATE = pa.struct([("phrase", pa.string()), ("score", pa.float32()), ("mask", RLE)])
BATCH = 16


def loop(profile: str, folder: Path, output: Path, by_image: bool) -> None:
    """One expert after the other over all pairs, or over all images with all that is asked of each."""
    pinned = pin_experts(load_profile(profile))
    output.mkdir()
    for name in pinned.experts:
        expert = load_expert(pinned, name)
        rows = [
            {"image": image, "instruction": text, "candidates": candidates}
            for image, texts in _items(folder, by_image)
            for text, candidates in zip(texts, ground(expert, folder, image, texts), strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(rows), output / f"{name}.parquet")


def _items(folder: Path, by_image: bool) -> Iterator[tuple[str, list[str]]]:
    for line in (folder / "pairs.jsonl").read_text().splitlines():
        item = json.loads(line)
        if by_image:
            yield item["image"], item["instructions"]
        else:
            yield from ((item["image"], [text]) for text in item["instructions"])


def ground(expert: Expert, folder: Path, image: str, texts: list[str]) -> list[list[dict[str, Any]]]:
    """The candidates in an image for each text, as rows."""
    pixels = np.asarray(Image.open(folder / "images" / image).convert("RGB"))
    found = expert.ground(pixels, [Request(text, [text]) for text in texts])
    return [[_row(candidate) for candidate in candidates] for candidates in found]


def _row(candidate: Candidate) -> dict[str, Any]:
    return {"phrase": candidate.phrase, "score": float(candidate.score), "mask": encode_rle(candidate.mask)}


class Model:
    """One expert as `map_batches` takes it: pairs, or images with all their texts, come in and get its candidates."""

    def __init__(self, profile: str, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.expert = load_expert(pin_experts(load_profile(profile)), name)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with the column of this expert."""
        rows = batch.select(["image", "texts"]).to_pylist()
        found = [ground(self.expert, self.folder, row["image"], row["texts"]) for row in rows]
        return batch.append_column(self.name, pa.array(found, pa.list_(pa.list_(CANDIDATE))))


def ray_data(profile: str, folder: Path, output: Path, by_image: bool) -> None:
    """Read, `map_batches` with one worker per expert, `write_parquet`."""
    # Imported here because the loops do without.
    import ray
    from ray.data import ActorPoolStrategy

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    items = [{"image": image, "texts": texts} for image, texts in _items(folder, by_image)]
    dataset: ray.data.Dataset = ray.data.from_items(items)
    for name in load_profile(profile).experts:
        dataset = dataset.map_batches(
            Model,
            fn_constructor_args=(profile, name, folder),
            batch_size=BATCH,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=1),
        )
    dataset.write_parquet(str(output))


KINDS = {
    "pair-loop": (loop, False),
    "image-loop": (loop, True),
    "pair-ray": (ray_data, False),
    "image-ray": (ray_data, True),
}


def main() -> None:
    """Runs one of the kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("profile")
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    run, by_image = KINDS[given.kind]
    run(given.profile, given.folder.absolute(), given.output.absolute(), by_image)


if __name__ == "__main__":
    main()
