"""Reads WebDataset shards: tar files in which the members of one sample stand together and share a key."""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator
from pydantic_core import from_json

from manifests.manifest import Manifest
from manifests.readers.base import FileOptions
from manifests.readers.files import MAX_FILE_BYTES
from manifests.readers.packed import PackedReader
from manifests.records import BadRecord, Record, mask_spec
from pipeline.errors import BadImage, InputError
from pipeline.storage import StorageFailed

_MOST_TEXT = 1 << 24
"""Largest text or JSON member read, 16 MiB."""
_FIRST_READ = 1 << 18
"""Bytes of the first request for an image: its header and, mostly, all of it."""
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
_JSON_FIELD = re.compile(r"((?:.+\.)?json)\.(.+)")
_NAME = re.compile(r"(.+?\.tar)#(\d{1,18})/(.+)", re.DOTALL)


class WebDatasetOptions(FileOptions):
    """Where a sample's parts are: the first place that is there counts. A place is a member's extension (`jpg`, `txt`,
    `mask.png`) or a field of a JSON member (`json.caption`, `json.meta.caption`).

    An instruction in JSON is a text, or a list of texts for several pairs. A mask is an image member, or in JSON a COCO
    RLE or an object with one key as in `jsonl`.
    """

    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
    instruction: tuple[str, ...] = ("txt", "json.instruction", "json.instructions")
    mask: tuple[str, ...] = ("mask.png", "json.mask")
    source: tuple[str, ...] = ("json.source",)

    @field_validator("image", "instruction", "mask", "source", mode="before")
    @classmethod
    def _one_or_more(cls, places: Any) -> Any:
        return [places] if isinstance(places, str) else places


@dataclass
class _Sample:
    """Members that share a key, by extension: the name that a record has for each, and the bytes of those to parse."""

    key: str
    members: dict[str, str] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    problem: str | None = None

    def value(self, place: str) -> Any:
        """What is at a place, or None. Raises ValueError."""
        found = _JSON_FIELD.fullmatch(place)
        content = self.contents.get(found[1] if found else place)
        if content is None:
            return None
        if found is None:
            return content.decode("utf-8-sig").strip()
        value = from_json(content, allow_inf_nan=False)
        for key in found[2].split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value


class WebdatasetReader(PackedReader):
    """Reader of tar files, one pass over each; see `WebDatasetOptions`.

    A record's image is `shard-000.tar#1536/key.jpg`, 1536 being where in the tar the member begins: so one image is
    read without an index and without a pass over what comes before it.
    """

    Options: ClassVar[type[FileOptions]] = WebDatasetOptions
    suffix: ClassVar[str] = ".tar"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.options = WebDatasetOptions.model_validate(manifest.options)
        places = (*self.options.instruction, *self.options.mask, *self.options.source)
        self._parsed = {found[1] for place in places if (found := _JSON_FIELD.fullmatch(place))}
        self._parsed |= {place for place in self.options.instruction if not _JSON_FIELD.fullmatch(place)}

    def file_records(self, location: str) -> Iterator[Record | BadRecord]:
        """Records of one tar, sample by sample; see `manifests.records.Reader`."""
        position = 0
        try:
            stream, skips = self._packs.open_forward(location)
            with stream, _open_tar(stream, "r:" if skips else "r|") as tar:
                for sample in self._samples(location, tar):
                    position = tar.offset
                    yield from self._sample_records(location, sample)
        except (tarfile.TarError, OSError, ValueError) as error:
            problem = f"not a whole, uncompressed tar, beyond about byte {position:,}: {' '.join(str(error).split())}"
            raise InputError(f"{self._packs.at(location)}: {problem}; fetch or decompress it again") from error

    def read(self, path: str) -> bytes:
        """Encoded bytes of an image; see `manifests.records.Reader`."""
        found = _NAME.fullmatch(path)
        return self._member(found[1], int(found[2]), found[3]) if found else super().read(path)

    def read_mask(self, path: str) -> bytes:
        """Encoded bytes of a mask file; see `manifests.records.Reader`."""
        return self.read(path) if _NAME.fullmatch(path) else super().read_mask(path)

    def _samples(self, location: str, tar: tarfile.TarFile) -> Iterator[_Sample]:
        sample: _Sample | None = None
        while info := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # or a tar of a million members is held as a list
            name = _MEMBER.fullmatch(info.name)
            if not info.isreg() or info.issparse() or not name or info.name.startswith("__"):
                continue
            key, extension = name[1], name[2].lower()
            if sample is None or key != sample.key:
                if sample:
                    yield sample
                sample = _Sample(key)
            if extension in sample.members:
                sample.problem = f"the sample has two members '{extension}'"
            sample.members[extension] = f"{location}#{info.offset}/{info.name}"
            if extension not in self._parsed:
                continue
            if info.size > _MOST_TEXT:
                sample.problem = f"member '{extension}' has {info.size:,} bytes, the limit is {_MOST_TEXT:,}"
            elif content := tar.extractfile(info):
                sample.contents[extension] = content.read()
        if sample:
            yield sample

    def _sample_records(self, location: str, sample: _Sample) -> list[Record | BadRecord]:
        image = next((sample.members[name] for name in self.options.image if name in sample.members), None)
        try:
            if sample.problem:
                raise ValueError(sample.problem)
            if image is None:
                raise ValueError(f"the sample has no image ({', '.join(self.options.image)})")
            given = _first(sample.value(place) for place in self.options.instruction)
            instructions = given if isinstance(given, list) else [given]
            if not instructions or not all(isinstance(text, str) for text in instructions):
                raise ValueError(f"the sample has no text at {' or '.join(self.options.instruction)}")
            source = _first(sample.value(place) for place in self.options.source) or self.manifest.name
            if not isinstance(source, str):
                raise ValueError(f"the sample's source at {' or '.join(self.options.source)} is no text")
            mask = self._mask(sample)
            return [Record(image, text, source, human_mask=mask) for text in instructions]
        except ValueError as error:
            shown = {"file": self._packs.at(location), "sample": sample.key, "members": sorted(sample.members)}
            return [BadRecord(str(error), shown, image)]

    def _mask(self, sample: _Sample) -> str | None:
        for place in self.options.mask:
            if not _JSON_FIELD.fullmatch(place):
                if place in sample.members:
                    return mask_spec("file", sample.members[place])
                continue
            match sample.value(place):
                case None:
                    continue
                case {"size": _, "counts": _} as rle:
                    return mask_spec("rle", rle)
                case dict(spec) if len(spec) == 1:
                    return mask_spec(*next(iter(spec.items())))
            raise ValueError(f"the mask at {place} is neither a COCO RLE nor an object with one key such as polygons")
        return None

    def _member(self, location: str, offset: int, name: str) -> bytes:
        try:
            return self._packs.persist(lambda: self._read_member(location, offset, name))
        except StorageFailed:
            raise
        except (tarfile.TarError, OSError, ValueError) as error:
            raise BadImage(f"'{name}' in {self._packs.at(location)}: {error}") from error

    def _read_member(self, location: str, offset: int, name: str) -> bytes:
        with self._packs.open(location) as file:
            first = file.read_at(_FIRST_READ, offset)
            with _open_tar(io.BytesIO(first), "r:") as tar:
                info = tar.next()
            if info is None or info.name != name:
                raise BadImage(f"'{name}' no longer begins at byte {offset:,} of {location}: make the plan again")
            if info.size > MAX_FILE_BYTES:
                raise BadImage(f"'{name}' has {info.size:,} bytes, the limit is {MAX_FILE_BYTES:,}")
            start = info.offset_data
            data = first[start : start + info.size]
            if len(data) < info.size:
                data += file.read_at(info.size - len(data), offset + start + len(data))
        if len(data) < info.size:
            raise BadImage(f"'{name}' in {self._packs.at(location)}: the tar ends before its last byte")
        return data


class _StrictInfo(tarfile.TarInfo):
    """Else `TarFile` takes a damaged header, or none where one is due, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset:,}") from error


def _open_tar(stream: Any, mode: Literal["r:", "r|"]) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode=mode, bufsize=1 << 20, tarinfo=_StrictInfo)


def _first(values: Iterator[Any]) -> Any:
    return next((value for value in values if value is not None), None)
