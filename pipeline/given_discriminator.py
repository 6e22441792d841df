"""`annotate --discriminator RUN`: the discriminator that another run trained, copied into this one instead of training.

Its scores are out of fold here too. Which fold's model scores an image follows from the image's name alone: where the
image was among RUN's, that is the model that did not train on it, and where it was not, none did. So both manifests
have to name an image alike; one that is another's copy under another name is not recognised.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.config import DiscriminatorFrom
from pipeline.errors import InputError
from pipeline.parts import Parts, RunSpec
from pipeline.store import DISCRIMINATOR, RUN_FILE, Marker, RunStore, marker_file
from pipeline.units import STAGE_VERSIONS
from stages.discriminators import check_discriminator


@dataclass(frozen=True)
class GivenDiscriminator:
    """A trained discriminator: where it is from and its `id`, its files below its folder, the examples it has seen."""

    origin: DiscriminatorFrom
    files: dict[str, bytes]
    examples: int

    @classmethod
    def read(cls, run: str, output: str) -> Self:
        """The discriminator of `run`, a folder or URI, for the run at `output`, as `RunStore.output`.

        Raises:
            InputError: there is no such run, or it has no trained discriminator that this version can use.
        """
        try:
            return cls._read(RunStore(run), output)
        except InputError as error:
            raise InputError(f"--discriminator {run}: {error}") from error
        except OSError as error:
            raise InputError(f"--discriminator {run}: cannot be read: {str(error).splitlines()[0]}") from error

    @classmethod
    def _read(cls, store: RunStore, output: str) -> Self:
        if store.output == output:
            raise InputError("this is the OUTPUT itself, which trains its own; leave the flag out")
        description, marker = store.read_json(RUN_FILE), store.marker(DISCRIMINATOR, 0)
        if description is None:
            raise InputError(f"no run here ({RUN_FILE} is missing); give the OUTPUT of a run with human masks")
        if marker is None:
            raise InputError("this run has not trained its discriminator yet; let 'annotate' finish it first")
        if not marker.rows:
            raise InputError(
                "this run has no discriminator, because too few of its pairs have a human mask; give another"
            )
        version, ours = _version(description), STAGE_VERSIONS[DISCRIMINATOR]
        if version != ours:
            raise InputError(
                f"its discriminator is of version {version}, this ivm-mix has {ours}; train it anew with --update"
            )
        files = {}
        for name, digest in marker.sha256.items():
            data = store.read(name)
            if data is None or hashlib.sha256(data).hexdigest() != digest:
                raise InputError(f"{name} is missing or not as it was written; restore it, or give another run")
            files[name.removeprefix(f"{DISCRIMINATOR}/")] = data
        return cls(DiscriminatorFrom(run=store.output, id=_check(files)), files, marker.rows)

    def commit(self, spec: RunSpec, store: RunStore) -> None:
        """Copies it into the run, if it is not there yet."""
        parts = Parts(spec, store.marker)
        if parts.is_done(parts.units[DISCRIMINATOR], 0):
            return
        store.delete_folder(DISCRIMINATOR)
        named = {f"{DISCRIMINATOR}/{name}": data for name, data in self.files.items()}
        written = {name: store.write(name, data) for name, data in named.items()}
        marker = Marker(
            unit=DISCRIMINATOR,
            shard=0,
            fingerprint=parts.fingerprints[DISCRIMINATOR],
            sha256=written,
            rows=self.examples,
        )
        store.write(marker_file(DISCRIMINATOR, 0), marker.model_dump_json(indent=2).encode())


def _version(description: dict[str, Any]) -> Any:
    return description.get("units", {}).get(DISCRIMINATOR, {}).get("config", {}).get("version")


def _check(files: dict[str, bytes]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return check_discriminator(Path(folder))
