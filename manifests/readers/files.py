"""Local paths and URIs, and folders whose files a record names by relative path."""

import posixpath

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import BadImage, InputError

MAX_FILE_BYTES = 1 << 28
"""Largest image file read, 256 MiB: a stray archive or video costs one row, not the worker's memory."""


def locate(location: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a local path or a URI that pyarrow knows (`s3://`, `gs://`, `fsspec+https://` …).

    Raises:
        InputError: the URI is malformed or its file system is unknown or not installed.
    """
    try:
        return fs.FileSystem.from_uri(location)
    except (OSError, ImportError, pa.ArrowInvalid) as error:
        raise InputError(f"{location}: not a usable path or URI: {error}; mend it in the manifest") from error


def open_stream(location: str) -> pa.NativeFile:
    """An annotation file as a binary stream, decompressed by its extension (`.gz`, `.bz2`, `.zst`).

    Raises:
        InputError: it is missing or unreadable.
    """
    filesystem, path = locate(location)
    try:
        return filesystem.open_input_stream(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{location}: {_reason(error)}; mend field 'annotations' in the manifest") from error


class Folder:
    """A folder of a manifest; reads files below it and nothing else. `label` names it in errors."""

    def __init__(self, location: str, label: str) -> None:
        self.location = location
        self._label = label
        self._filesystem, self._root = locate(location)

    def exists(self) -> bool:
        """Whether there is such a folder (on object storage: anything below this prefix).

        Raises:
            InputError: the storage does not let us look.
        """
        try:
            return self._filesystem.get_file_info(self._root).type == fs.FileType.Directory
        except OSError as error:
            raise InputError(f"{self.location}: the {self._label} cannot be looked at: {error}") from error

    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            BadImage: `path` is absolute or climbs out of the folder, or its file is missing, unreadable or larger
                than `MAX_FILE_BYTES`.
        """
        relative = self._inside(path)
        try:
            with self._filesystem.open_input_file(f"{self._root}/{relative}") as file:
                if file.size() > MAX_FILE_BYTES:
                    raise BadImage(f"'{path}' has {file.size():,} bytes, the limit is {MAX_FILE_BYTES:,}")
                return file.read()
        except (OSError, ValueError) as error:
            raise BadImage(f"'{path}' in {self.location}: {_reason(error)}") from error

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
            return str(error)
