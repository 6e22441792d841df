"""What readers of annotation files share: where the images and masks that a record names are, and who reads them."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import field_validator

from manifests.manifest import Manifest
from manifests.readers.files import Folder, locate, open_stream
from manifests.readers.urls import Web, WebFolder, is_url
from manifests.records import BadRecord, ReaderOptions, Record
from pipeline.errors import BadImage, InputError

_BLOCK = 1 << 22


class FileOptions(ReaderOptions):
    """`urls` lets records name images and masks by http(s) URL: `true` on any public host; a list of hosts only on
    these, which may then be internal ones.
    """

    urls: bool | list[str] = False

    @field_validator("urls", mode="before")
    @classmethod
    def _host_names(cls, urls: Any) -> Any:
        hosts = [urls] if isinstance(urls, str) else urls
        for host in hosts if isinstance(hosts, list) else []:
            if not isinstance(host, str) or not re.fullmatch(r"[^/:@ *]+", host):
                raise ValueError(f"'{host}' is no host name; give names such as images.example.org, or true")
        return [host.lower() for host in hosts] if isinstance(hosts, list) else hosts


class FileReader(ABC):
    """Base of readers of annotation files. Subclasses turn one file into records; images and masks are files below the
    manifest's folders, or http(s) URLs where `FileOptions.urls` allows them."""

    Options: ClassVar[type[FileOptions]] = FileOptions

    def __init__(self, manifest: Manifest) -> None:
        if not manifest.annotations:
            raise InputError(f"manifest '{manifest.name}': field 'annotations' is missing: give at least one file")
        self.manifest = manifest
        urls = self.Options.model_validate(manifest.options).urls
        self._hosts = frozenset(urls if isinstance(urls, list) else [])
        self._web = Web(self._hosts, public=urls is True) if urls else None
        self._images = self._folder(manifest.images, "image root")
        self._masks = self._folder(manifest.masks, "masks folder") if manifest.masks else self._images
        if self._images is None and self._needs_images():
            raise InputError(f"manifest '{manifest.name}': field 'images' is missing: give the folder of the images")

    def records(self) -> Iterator[Record | BadRecord]:
        """Every record of the annotation files in turn; see `manifests.records.Reader`.

        Raises:
            InputError: a folder or an annotation file of the manifest is missing, or a file is not of the format.
        """
        for field, folder in (("images", self._images), ("masks", self._masks)):
            if folder and not folder.exists():
                raise InputError(f"manifest '{self.manifest.name}': field '{field}': no such folder {folder.location}")
        locations = self.locations()
        for location in locations:
            yield from self.file_records(location)

    def locations(self) -> list[str]:
        """The annotation files, each of which can be opened."""
        for location in self.manifest.annotations:
            open_stream(location).close()
        return self.manifest.annotations

    @abstractmethod
    def file_records(self, location: str) -> Iterator[Record | BadRecord]:
        """Records of one annotation file, streamed."""

    def fingerprint(self) -> str | None:
        """Checksum of the annotation files; see `manifests.records.Reader`."""
        digest = hashlib.sha256()
        for location in self.manifest.annotations:
            storage = locate(location)
            try:
                with storage.fs.open_input_stream(storage.path, compression=None) as stream:
                    while block := stream.read(_BLOCK):
                        digest.update(block)
            except (OSError, pa.ArrowInvalid) as error:
                raise InputError(f"{location}: cannot be read: {error}; mend field 'annotations'") from error
        return digest.hexdigest()

    def read(self, path: str) -> bytes:
        """Encoded bytes of an image; see `manifests.records.Reader`."""
        return self._file(path, self._images, "images")

    def read_mask(self, path: str) -> bytes:
        """Encoded bytes of a mask file; see `manifests.records.Reader`."""
        return self._file(path, self._masks, "masks")

    def _needs_images(self) -> bool:
        return self._web is None

    def _folder(self, location: str | None, label: str) -> Folder | None:
        if location is None:
            return None
        return WebFolder(location, label, self._hosts) if is_url(location) else Folder(location, label)

    def _file(self, path: str, folder: Folder | None, field: str) -> bytes:
        if is_url(path):
            if self._web is None:
                raise BadImage("the image is a URL, which the manifest does not allow; if meant: options: {urls: true}")
            return self._web.fetch(path)
        if folder is None:
            raise BadImage(f"'{path}' is a path, but the manifest has no field '{field}' that says below which folder")
        return folder.read(path)
