"""A run's files, on disk or object storage: where each table lies, atomic writes, commit markers."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs
from pyarrow.fs import FileSystem
from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.schemas import REJECTS
from pipeline.storage import Storage, reason

T = TypeVar("T")

DISCRIMINATOR = "discriminator"
RUN_FILE = "run.json"
PROBE = ".probe"
LEDGER = "ledger"
"""Field of run.json that the run itself adds at its end, see `pipeline.ledger`."""
# Not `batches`: what is under way there is paid for, and its answers are good for a fresh start too.
_FOLDERS = ("done", "plan", "samples", "candidates", "scores", "labels", "rejects", DISCRIMINATOR, "report")


class Marker(BaseModel):
    """`done/<unit>/part-NNNNN.json`: what stands in it is committed, whatever else lies in the run is not.

    `read` and `sha256` are checksums of the input parts and of the files written; `covered` says how many items the
    unit has worked on, `items` which; `stats` are figures that add up over shards.
    """

    unit: str
    shard: int
    fingerprint: str
    read: dict[str, str] = {}
    sha256: dict[str, str]
    covered: int = 0
    items: str = ""
    rows: int = 0
    rejects: int = 0
    stats: dict[str, float] = {}
    seconds: float = 0.0

    @property
    def checksum(self) -> str:
        """One checksum of what other units read of the part, its files without the rejects."""
        read = {file: digest for file, digest in self.sha256.items() if not file.startswith("rejects/")}
        return hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


class RunStore:
    """One run at a local path or any pyarrow or fsspec URI (`s3://…`). Picklable."""

    def __init__(self, output: str) -> None:
        """Raises InputError: `output` is no URI of a known storage, see `pipeline.storage.open_storage`."""
        # Absolute, because a worker may have another current folder.
        self.output = output if "://" in output else str(Path(output).absolute())
        self._storage = Storage(self.output)
        self.root = self._storage.path
        self.is_local = self._storage.is_local

    def __reduce__(self) -> tuple[type["RunStore"], tuple[str]]:
        return RunStore, (self.output,)

    @property
    def fs(self) -> FileSystem:
        """The file system that `path` is a path of."""
        return self._storage.fs

    def path(self, name: str) -> str:
        """Full path of a file of the run."""
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes | None:
        """Bytes of a file, or None where there is none."""

        def whole() -> bytes:
            with self.fs.open_input_stream(self.path(name), compression=None) as stream:
                return stream.read()

        try:
            return self._patiently(name, "read", whole)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> str:
        """Writes a whole file or nothing, durably; returns its SHA-256.

        On a local disk by temporary file, fsync and rename; on object storage an object appears when its upload ends.
        """
        self._patiently(name, "written", lambda: self._write(name, data))
        return hashlib.sha256(data).hexdigest()

    def _write(self, name: str, data: bytes) -> None:
        if self.is_local:
            _write_local(Path(self.path(name)), data)
        else:
            # pyarrow cannot give up an upload: what an exception interrupts it closes, and publishes as it is. Ctrl-C
            # interrupts the main thread only.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(_upload, self.fs, self.path(name), data).result()

    def _patiently(self, name: str, done: str, operation: Callable[[], T]) -> T:
        return self._storage.patiently(f"{self._named(name)} cannot be {done}", operation)

    def _named(self, name: str) -> str:
        """A file as an error names it: on object storage by its URI, as a path does not say where the bucket is."""
        if self.is_local:
            return self.path(name)
        parts = urlsplit(self.output)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` as indented JSON, atomically."""
        self.write(name, json.dumps(value, indent=2, ensure_ascii=False).encode())

    def read_json(self, name: str) -> Any:
        """A JSON file's value, or None where there is none.

        Raises:
            InputError: it is not JSON.
        """
        data = self.read(name)
        try:
            return None if data is None else json.loads(data)
        except ValueError as error:
            raise InputError(f"{self._named(name)} is damaged: {error}; restore it, or say --fresh") from error

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files; one that is gone already is fine."""

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: self._patiently(name, "deleted", lambda: self._delete(name)), names))

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """Deletes a folder of the run and all in it; one that is gone already is fine."""

        def remove() -> None:
            self.fs.delete_dir_contents(self.path(name), missing_dir_ok=True)
            if self.fs.get_file_info(self.path(name)).type == fs.FileType.Directory:
                self.fs.delete_dir(self.path(name))

        self._patiently(name, "deleted", remove)

    def clear(self) -> None:
        """Deletes everything this pipeline writes; leaves what else lies in the folder.

        Markers go first and run.json last: killed in between, the rest is neither trusted nor taken for foreign.

        Raises:
            InputError: the folder has folders of these names, but is no run.
        """
        if self.read(RUN_FILE) is None and any(self._has(folder) for folder in _FOLDERS):
            raise InputError(f"OUTPUT '{self.output}' is no run (no {RUN_FILE}); --fresh deletes runs only")
        for folder in _FOLDERS:
            self.delete_folder(folder)
        self.delete([RUN_FILE])

    def _has(self, name: str) -> bool:
        info = self._patiently(name, "looked at", lambda: self.fs.get_file_info(self.path(name)))
        return bool(info.type != fs.FileType.NotFound)

    def files(self, folder: str) -> list[str]:
        """Names of the files right below a folder, sorted; empty where there is no such folder."""
        return sorted(self.listing(folder))

    def listing(self, folder: str) -> dict[str, tuple[float, int]]:
        """Files right below a folder: by name the time of change (Unix seconds) and size (bytes)."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        infos = self._patiently(folder, "listed", lambda: self.fs.get_file_info(selector))
        return {info.base_name: _stamp(info) for info in infos if info.type == fs.FileType.File}

    def stamp(self, name: str) -> tuple[float, int]:
        """A file's time of change and size as in `listing`; what it gives where there is none is of no file."""
        return _stamp(self._patiently(name, "looked at", lambda: self.fs.get_file_info(self.path(name))))

    def write_table(self, name: str, table: pa.Table) -> str:
        """Writes a Parquet file (zstd) atomically; returns its SHA-256."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        return self.write(name, buffer.getvalue().to_pybytes())

    def read_table(self, name: str, columns: list[str] | None = None, filters: pc.Expression | None = None) -> pa.Table:
        """A Parquet file as a table: all of it, or these columns, or the rows that pass the filter."""

        def table() -> pa.Table:
            path = self.path(name)
            return pq.read_table(path, filesystem=self.fs, partitioning=None, columns=columns, filters=filters)

        return self._patiently(name, "read", table)

    def read_rejects(self, unit: str, shard: int) -> pa.Table:
        """The rejects of one part of a unit; empty where it has none."""
        data = self.read(rejects_file(unit, shard))
        return REJECTS.empty_table() if data is None else pq.read_table(pa.BufferReader(data))

    def markers(self, unit: str) -> dict[int, Marker]:
        """Commit markers of a unit by shard, read in threads."""
        folder = f"done/{unit}"

        with ThreadPoolExecutor(16) as pool:
            loaded = pool.map(self._load_marker, (f"{folder}/{name}" for name in self.part_files(folder)))
            return {marker.shard: marker for marker in loaded if marker}

    def part_files(self, folder: str) -> list[str]:
        """Names of a folder's part files, without what a killed writer left."""
        return [name for name in self.files(folder) if name.startswith("part-")]

    def marker(self, unit: str, shard: int) -> Marker | None:
        """The commit marker of one part, or None."""
        return self._load_marker(marker_file(unit, shard))

    def _load_marker(self, name: str) -> Marker | None:
        data = self.read(name)
        try:
            return None if data is None else Marker.model_validate_json(data)
        except ValidationError:
            # Cut short by a storage that does not write files whole: not committed.
            return None

    def check_writable(self) -> None:
        """Raises InputError: nothing can be written below OUTPUT."""
        try:
            # At once or not at all: a wrong bucket or key is told without waiting for it to mend.
            self._write(PROBE, b"")
            self._delete(PROBE)
        except OSError as error:
            raise InputError(
                f"OUTPUT '{self.output}' cannot be written: {reason(error)}; mend that, or choose another OUTPUT"
            ) from error


def _upload(storage: FileSystem, path: str, data: bytes) -> None:
    with storage.open_output_stream(path, compression=None) as stream:
        stream.write(data)


def _stamp(info: fs.FileInfo) -> tuple[float, int]:
    return (info.mtime_ns or 0) / 1e9, info.size or 0


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The leading '_' keeps Parquet readers off a temporary file that a kill leaves behind.
    handle, temporary = tempfile.mkstemp(prefix="_tmp-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _part(shard: int, ending: str) -> str:
    return f"part-{shard:05d}.{ending}"


def plan_file(shard: int, sha256: str) -> str:
    """Where the plan's rows of a shard lie, relative to the run; a file of this name never changes."""
    return f"plan/{_part(shard, f'{sha256[:12]}.parquet')}"


def table_folder(unit: str) -> str:
    """Folder of a unit's table, relative to the run: Hive folders for the experts, so that `expert` is a column."""
    return unit.replace("candidates/", "candidates/expert=", 1)


def table_file(unit: str, shard: int) -> str:
    """Where a unit's rows of a shard lie, relative to the run."""
    return f"{table_folder(unit)}/{_part(shard, 'parquet')}"


def rejects_file(unit: str, shard: int) -> str:
    """Where a unit's rejects of a shard lie, relative to the run."""
    return f"rejects/{unit}/{_part(shard, 'parquet')}"


def marker_file(unit: str, shard: int) -> str:
    """Where a unit's commit marker of a shard lies, relative to the run."""
    return f"done/{unit}/{_part(shard, 'json')}"
