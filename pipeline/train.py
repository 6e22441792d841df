"""Trains the run's discriminator: gathers the labelled pairs' masks shard by shard, trains, commits the weights."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from manifests.manifest import open_reader
from pipeline.errors import BadImage
from pipeline.images import decode_image
from pipeline.parts import Parts, RunSpec
from pipeline.schemas import LABELLED
from pipeline.store import DISCRIMINATOR, Marker, RunStore, marker_file, table_file
from pipeline.unit_workers import of_pairs, read_candidates
from pipeline.units import SAMPLES, SCORES
from stages.discriminators import train_any
from stages.examples import Example, examples, training_pairs
from stages.ivm_config import IvmConfig
from stages.load import read_images


def chosen_pairs(spec: RunSpec, store: RunStore) -> set[str]:
    """The uuids of the labelled pairs that the run's discriminator trains on."""
    return training_pairs(_labelled(spec, store), spec.profile.discriminator.max_pairs)


def train_discriminator(spec: RunSpec, *gathered: list[Example]) -> None:
    """Trains on what `gather` gave and commits, be it that human masks are too few for a discriminator."""
    started = time.monotonic()
    store = RunStore(spec.output)
    config = spec.profile.discriminator
    parts = Parts(spec, store.marker)
    unit = parts.units[DISCRIMINATOR]
    found = list(chain.from_iterable(gathered))
    written = {}
    with tempfile.TemporaryDirectory() as folder:
        # Folds that an interrupted training finished: `train` tells whether they are of these examples.
        for name in store.files(DISCRIMINATOR):
            if name.endswith((".safetensors", ".pt")):
                (Path(folder) / name).write_bytes(store.read(f"{DISCRIMINATOR}/{name}") or b"")
        if isinstance(config, IvmConfig) and config.device == "auto" and not unit.pool.gpus:
            # Ray leaves the GPUs in sight of workers that have reserved none.
            config = config.model_copy(update={"device": "cpu"})
        metrics = train_any(found, _pixels(spec), config, Path(folder), lambda file: _keep(store, file))
        store.delete_folder(DISCRIMINATOR)
        for file in sorted(Path(folder).iterdir()) if metrics else ():
            name = f"{DISCRIMINATOR}/{file.name}"
            written[name] = store.write(name, file.read_bytes())
    marker = Marker(
        unit=DISCRIMINATOR,
        shard=0,
        fingerprint=parts.fingerprints[unit.name],
        sha256=written,
        rows=len(found) if metrics else 0,
        seconds=round(time.monotonic() - started, 3),
    )
    store.write(marker_file(DISCRIMINATOR, 0), marker.model_dump_json(indent=2).encode())


def _pixels(spec: RunSpec) -> Callable[[str], np.ndarray]:
    read = open_reader(spec.manifest).read

    def pixels(image: str) -> np.ndarray:
        data = read_images([image], read)[image]
        if isinstance(data, BadImage):
            raise data
        return decode_image(data)

    return pixels


def _keep(store: RunStore, file: Path) -> None:
    store.write(f"{DISCRIMINATOR}/{file.name}", file.read_bytes())


def gather(spec: RunSpec, pairs: set[str], shards: Iterable[int]) -> list[Example]:
    """Training examples of these pairs, from the run's committed candidates of these shards, in order."""
    store = RunStore(spec.output)
    reader = open_reader(spec.manifest)
    candidates = Parts(spec, store.marker).units[SCORES].inputs
    found: list[Example] = []
    for shard in shards:
        rows = store.read_table(table_file(SAMPLES, shard)).to_pylist()
        samples = [row for row in rows if row["uuid"] in pairs]
        if not samples:
            continue
        images = read_images(dict.fromkeys(row["image"] for row in samples), reader.read)
        encoded = {image: data for image, data in images.items() if isinstance(data, bytes)}
        found += examples(samples, of_pairs(read_candidates(store, candidates, shard), samples), encoded)
    return found


def _labelled(spec: RunSpec, store: RunStore) -> Iterator[str]:
    for shard in range(len(spec.plan.shards)):
        table = store.read_table(table_file(SAMPLES, shard), ["uuid"], pc.field("branch") == LABELLED)
        yield from table["uuid"].to_pylist()
