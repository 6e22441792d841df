"""Local paths and URIs, and folders whose files a record names by relative path."""

import posixpath
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import BadImage, InputError
from pipeline.storage import Storage, StorageFailed, reason

MAX_FILE_BYTES = 1 << 28
"""Largest image file read, 256 MiB: a stray archive or video costs one row, not the worker's memory."""
FILE_PATIENCE_SECONDS = 5.0
"""For how long one file is asked for before the storage itself is looked at."""

T = TypeVar("T")


def locate(location: str) -> Storage:
    """The storage of a local path or a URI in a manifest.

    Raises:
        InputError: the URI is malformed or its file system is unknown or not installed.
    """
    try:
        return Storage(location)
    except InputError as error:
        raise InputError(f"{error}; mend it in the manifest") from error


def open_stream(location: str) -> pa.NativeFile:
    """An annotation file as a binary stream, decompressed by its extension (`.gz`, `.bz2`, `.zst`).

    Raises:
        InputError: it is missing or unreadable.
    """
    storage = locate(location)
    try:
        return storage.fs.open_input_stream(storage.path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{location}: {_reason(error)}; mend field 'annotations' in the manifest") from error


class Folder:
    """A folder of a manifest; reads files below it and nothing else. `label` names it in errors."""

    def __init__(self, location: str, label: str) -> None:
        self.location = location
        self._label = label
        self._storage = locate(location)

    def exists(self) -> bool:
        """Whether there is such a folder (on object storage: anything below this prefix).

        Raises:
            InputError: the storage does not let us look.
        """
        try:
            return self._look() == fs.FileType.Directory
        except OSError as error:
            raise InputError(f"{self.location}: the {self._label} cannot be looked at: {reason(error)}") from error

    def _look(self) -> fs.FileType:
        return self._storage.fs.get_file_info(self._storage.path).type

    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            BadImage: `path` is absolute or climbs out of the folder, or its file is missing, unreadable or larger
                than `MAX_FILE_BYTES`.
            StorageFailed: the storage does not answer, retries included.
        """
        relative = self._inside(path)

        def whole() -> bytes:
            with self._storage.fs.open_input_file(f"{self._storage.path}/{relative}") as file:
                if file.size() > MAX_FILE_BYTES:
                    raise BadImage(f"'{path}' has {file.size():,} bytes, the limit is {MAX_FILE_BYTES:,}")
                return file.read()

        try:
            return self.persist(whole)
        except StorageFailed:
            raise
        except (OSError, ValueError) as error:
            raise BadImage(f"'{path}' in {self.location}: {_reason(error)}") from error

    def persist(self, read: Callable[[], T]) -> T:
        """The result of a read below the folder, tried again while the storage is away.

        Raises:
            StorageFailed: the storage does not answer, retries included. What else `read` raises is the file's fault.
        """
        try:
            return self._storage.retried(read, FILE_PATIENCE_SECONDS)
        except OSError as error:
            if not self._storage.may_pass(error):
                raise
        # The file's fault or the storage's? Once the storage answers, one more try tells.
        self._storage.patiently(f"{self.location} cannot be looked at", self._look)
        return read()

    def _inside(self, path: str) -> str:
        # Lexical, on purpose: a symlink inside the folder is its owner's decision, a path in a data file is not.
        # Backslashes count as separators, so that a path means the same wherever the folder is mounted.
        relative = posixpath.normpath(path.replace("\\", "/"))
        if relative.startswith(("/", "../")) or relative in (".", "..") or "\0" in path or ":/" in relative:
            raise BadImage(f"'{path}' is outside the {self._label}: give a relative path below it")
        return posixpath.normpath(path)


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return "no such file"
        case PermissionError():
            return "permission denied"
        case _:
            return reason(error)
