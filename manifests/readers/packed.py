"""Annotation files that hold the images themselves: which files there are, and how a record names what is in them."""

import hashlib
import posixpath
import re
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import ClassVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from manifests.manifest import Manifest
from manifests.readers.base import FileReader
from manifests.readers.files import Folder
from pipeline.errors import BadImage, InputError

MOST_NAMES = 100_000
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a shell's braces stand for: `{000..012}` counts, both ends included, `{train,val}` lists.

    Raises:
        ValueError: they stand for no name, or for more than `MOST_NAMES`.
    """
    fixed: list[str] = []
    choices: list[list[str] | range] = []
    widths: list[int] = []
    end = 0
    for found in _BRACES.finditer(pattern):
        fixed.append(pattern[end : found.start()])
        end = found.end()
        first, last, listed = found.groups()
        padded = first is not None and any(len(side) > 1 and side.startswith("0") for side in (first, last))
        widths.append(max(len(first), len(last)) if padded else 0)
        choices.append(listed.split(",") if first is None else range(int(first), int(last) + 1))
    if not 0 < prod(map(len, choices)) <= MOST_NAMES:
        raise ValueError(f"its braces stand for no name, or for more than {MOST_NAMES:,}")
    for chosen in product(*choices):
        values = [str(value).zfill(width) for value, width in zip(chosen, widths, strict=True)]
        yield "".join([*(part + value for part, value in zip(fixed, values, strict=True)), pattern[end:]])


class PackFolder(Folder):
    """The folder that all annotation files lie below; they are named by their path in it."""

    def find(self, path: str, suffix: str) -> list[fs.FileInfo]:
        """The files that a path below the folder stands for, sorted: itself, the matches of a `*` in its last part, or
        if it is a folder all files below it that end in `suffix`, hidden ones apart.

        Raises:
            InputError: there are none, or the storage does not let us look.
        """
        parent, last = posixpath.split(f"{self._storage.path}/{path}".rstrip("/"))
        try:
            if "*" in last:
                wanted = re.compile(".*".join(map(re.escape, last.split("*"))), re.DOTALL)
                listed = self._storage.fs.get_file_info(fs.FileSelector(parent, allow_not_found=True))
                found = [info for info in listed if info.is_file and wanted.fullmatch(info.base_name)]
            else:
                info = self._storage.fs.get_file_info(posixpath.join(parent, last))
                found = [info] if info.is_file else []
                if info.type == fs.FileType.Directory:
                    listed = self._storage.fs.get_file_info(fs.FileSelector(info.path, recursive=True))
                    found = [file for file in listed if file.is_file and _seen(file.path[len(info.path) :])]
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise InputError(f"{self.at(path)}: cannot be looked at: {error}; mend field 'annotations'") from error
        found = [info for info in found if info.path.endswith(suffix)]
        if not found:
            raise InputError(f"{self.at(path)}: no such {suffix} file; mend field 'annotations' in the manifest")
        return sorted(found, key=lambda info: info.path)

    def name(self, info: fs.FileInfo) -> str:
        """A found file's path below the folder. Raises InputError where no record could name it so."""
        name = str(info.path).removeprefix(self._storage.path).lstrip("/")
        try:
            self._inside(name)
        except BadImage as error:
            raise InputError(f"{info.path}: its name reads as one of another place; rename it") from error
        return name

    def at(self, name: str) -> str:
        """Where a file is, for messages."""
        base, mark, query = self.location.partition("?") if "://" in self.location else (self.location, "", "")
        return posixpath.join(base, name).rstrip("/") + mark + query

    def open(self, name: str) -> pa.NativeFile:
        """A file for reads at any place in it. Raises OSError, or BadImage if `name` leads out of the folder."""
        return self._storage.fs.open_input_file(f"{self._storage.path}/{self._inside(name)}")

    def open_forward(self, name: str) -> tuple[pa.NativeFile, bool]:
        """A file to be read once from start to end, and whether leaving parts out of it is cheap: on object storage
        each such step is a request. Raises OSError."""
        path = f"{self._storage.path}/{self._inside(name)}"
        if self._storage.is_local:
            return self._storage.fs.open_input_file(path), True
        return self._storage.fs.open_input_stream(path, compression=None), False


class PackedReader(FileReader):
    """Base of readers whose annotation files hold the images. `annotations` are files, patterns with braces or a `*`,
    or folders. Records name a file by its path below the deepest folder that all of `annotations` share."""

    suffix: ClassVar[str]
    """How the files' names end."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self._names = [name for entry in manifest.annotations for name in self._expanded(entry)]
        self._packs = PackFolder(self._shared(), "folder of the annotation files")

    def locations(self) -> list[str]:
        """The annotation files, each by its path below the shared folder."""
        return list(dict.fromkeys(self._packs.name(info) for info in self._found()))

    def fingerprint(self) -> str:
        """Checksum of the files' names, sizes and times: the files themselves may be terabytes."""
        digest = hashlib.sha256()
        for info in self._found():
            digest.update(f"{info.path} {info.size} {info.mtime_ns}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _needs_images(self) -> bool:
        return False

    def _found(self) -> Iterator[fs.FileInfo]:
        root = self._split(self._shared())[1]
        for name in self._names:
            head, path, _ = self._split(name)
            below = path.removeprefix(root).lstrip("/")
            # A URI is written with escapes, but for those that fsspec reads.
            plain = not head or head.startswith("fsspec+")
            yield from self._packs.find(below if plain else unquote(below), self.suffix)

    def _expanded(self, entry: str) -> list[str]:
        if "*" in posixpath.dirname(self._split(entry)[1]):
            raise self._problem(f"'{entry}': a * may stand in the last part of a path only; name the folders")
        try:
            names = list(expand_braces(entry))
        except (ValueError, OverflowError) as error:
            raise self._problem(f"'{entry}': {error}") from error
        for name in names:
            last = posixpath.basename(self._split(name)[1])
            if self.suffix in last and not last.endswith(self.suffix) and "*" not in last:
                raise self._problem(f"'{name}': this reader takes uncompressed {self.suffix} files; decompress it")
        return names

    def _shared(self) -> str:
        parts = [self._split(name) for name in self._names]
        folders = [path if self._is_folder(path) else posixpath.dirname(path) for _, path, _ in parts]
        try:
            shared = posixpath.commonpath(folders)
        except ValueError:
            shared = ""
        if not shared or len({(head, query) for head, _, query in parts}) > 1:
            raise self._problem("its files lie in several buckets or storages; write one manifest for each")
        head, _, query = parts[0]
        return head + shared + query

    def _is_folder(self, path: str) -> bool:
        last = posixpath.basename(path)
        return not last.endswith(self.suffix) and "*" not in last

    def _problem(self, problem: str) -> InputError:
        return InputError(f"manifest '{self.manifest.name}': field 'annotations': {problem}")

    @staticmethod
    def _split(location: str) -> tuple[str, str, str]:
        """Scheme, path and query of a location; their concatenation is the location."""
        scheme, mark, rest = location.partition("://")
        if not mark:
            return "", location.rstrip("/") or "/", ""
        path, question, query = rest.partition("?")
        return scheme + mark, path.rstrip("/") or "/", question + query


def _seen(path: str) -> bool:
    return not any(part.startswith((".", "_")) for part in path.split("/"))
