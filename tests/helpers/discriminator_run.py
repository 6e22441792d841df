"""A run of which only its discriminator is there."""

from pathlib import Path

from pipeline.store import DISCRIMINATOR, RUN_FILE, Marker, RunStore, marker_file
from pipeline.units import STAGE_VERSIONS


def commit_discriminator(files: Path, output: Path) -> RunStore:
    """Commits what training wrote into the folder `files` to a run at `output`."""
    store = RunStore(str(output))
    described = {"config": {"version": STAGE_VERSIONS[DISCRIMINATOR]}, "inputs": []}
    store.write_json(RUN_FILE, {"units": {DISCRIMINATOR: described}})
    names = {f"{DISCRIMINATOR}/{file.name}": file for file in files.iterdir()}
    written = {name: store.write(name, file.read_bytes()) for name, file in names.items()}
    marker = Marker(unit=DISCRIMINATOR, shard=0, fingerprint="", sha256=written, rows=9)
    store.write(marker_file(DISCRIMINATOR, 0), marker.model_dump_json().encode())
    return store
