"""Reads Parquet files with the images in a column, as Hugging Face lays its datasets out."""

import bisect
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from manifests.manifest import Manifest
from manifests.readers.base import FileOptions
from manifests.readers.files import MAX_FILE_BYTES
from manifests.readers.packed import PackedReader, PackFolder
from manifests.records import BadRecord, Record, mask_spec
from pipeline.errors import BadImage, InputError
from pipeline.storage import StorageFailed

MAX_GROUP_BYTES = 1 << 30
"""Largest column of one row group that is read, 1 GiB: one image costs reading all of it."""
KEPT_BYTES = 1 << 29
"""Of the row groups read last, how much stays in memory: the next image is mostly in one of them."""
_ROWS = 256
_NAME = re.compile(r"(.+?\.parquet)#(\d{1,18})", re.DOTALL)
_ERRORS = (OSError, ValueError, pa.ArrowException)


class ParquetOptions(FileOptions):
    """Names of the columns. `image` is a struct of `bytes` and `path`, bytes, or the path or URL of a file;
    `instruction` a text, or a list of texts for several pairs; `mask`, if there is one, a struct of `size` and `counts`
    (COCO RLE), an image as above, or JSON text as in `jsonl`; `source` a text.
    """

    image: str = "image"
    instruction: str = "instruction"
    mask: str | None = None
    source: str | None = None


class ParquetReader(PackedReader):
    """Reader of Parquet files, batch by batch and without the images; see `ParquetOptions`.

    A record's image is `train-00000.parquet#123`, 123 being the row counted from 0, or the path or URL that the column
    holds. Reading it reads its row group's image column.
    """

    Options: ClassVar[type[FileOptions]] = ParquetOptions
    suffix: ClassVar[str] = ".parquet"

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.options = ParquetOptions.model_validate(manifest.options)

    def file_records(self, location: str) -> Iterator[Record | BadRecord]:
        """Records of one file, row by row; see `manifests.records.Reader`."""
        row = 0
        try:
            with self._packs.open(location) as stream, pq.ParquetFile(stream) as file:
                columns = self._columns(location, file)
                for batch in file.iter_batches(_ROWS, columns=columns):
                    for values in zip(*(batch.column(name) for name in columns), strict=True):
                        yield from self._row_records(location, row, dict(zip(columns, values, strict=True)))
                        row += 1
        except _ERRORS as error:
            problem = f"not readable as Parquet, from about row {row:,} on: {' '.join(str(error).split())}"
            raise InputError(f"{self._packs.at(location)}: {problem}; fetch it again") from error

    def read(self, path: str) -> bytes:
        """Encoded bytes of an image; see `manifests.records.Reader`."""
        found = _NAME.fullmatch(path)
        return self._cell(found[1], int(found[2]), self.options.image, super().read) if found else super().read(path)

    def read_mask(self, path: str) -> bytes:
        """Encoded bytes of a mask file; see `manifests.records.Reader`."""
        found, column = _NAME.fullmatch(path), self.options.mask
        if found and column:
            return self._cell(found[1], int(found[2]), column, super().read_mask)
        return super().read_mask(path)

    def _columns(self, location: str, file: pq.ParquetFile) -> list[str]:
        """Columns that records are made from; that of the images is not among them where it holds their bytes."""
        schema = file.schema_arrow
        checks = {"image": _is_image, "instruction": _is_words, "mask": _is_mask, "source": _is_text}
        for option, fits in checks.items():
            column = getattr(self.options, option)
            if column is None:
                continue
            there = f"it has {', '.join(f'{field.name} ({field.type})' for field in schema)}"
            if schema.names.count(column) != 1:
                raise self._unfit(location, f"no column '{column}': {there}; name one in options.{option}")
            if not fits(schema.field(column).type):
                raise self._unfit(location, f"column '{column}' cannot be options.{option}: {there}")
        image = self.options.image
        names = [self.options.instruction, self.options.mask, self.options.source]
        if not _is_text(schema.field(image).type):
            self._check_groups(location, file.metadata)
        elif self._images is None and self._web is None:
            raise self._unfit(
                location, f"column '{image}' holds paths: give field 'images', or options: {{urls: true}}"
            )
        else:
            names.append(image)
        return list(dict.fromkeys(name for name in names if name))

    def _check_groups(self, location: str, metadata: pq.FileMetaData) -> None:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            chunks = [group.column(k) for k in range(group.num_columns)]
            size = sum(one.total_uncompressed_size for one in chunks if _top(one) == self.options.image)
            if size > MAX_GROUP_BYTES:
                problem = f"row group {number} holds {size:,} bytes of images, the limit is {MAX_GROUP_BYTES:,}"
                raise self._unfit(location, f"{problem}; write it again with row_group_size=100")

    def _unfit(self, location: str, problem: str) -> InputError:
        return InputError(f"{self._packs.at(location)}: {problem}")

    def _row_records(self, location: str, row: int, cells: dict[str, pa.Scalar]) -> list[Record | BadRecord]:
        image: str | None = f"{location}#{row}"
        try:
            values = {name: cell.as_py() for name, cell in cells.items()}
            image = values.get(self.options.image, image)
            if not image:
                raise ValueError(f"column '{self.options.image}' is empty")
            given = values[self.options.instruction]
            instructions = given if isinstance(given, list) else [given]
            if not instructions or None in instructions:
                raise ValueError(f"column '{self.options.instruction}' is empty")
            source = values[self.options.source] if self.options.source else None
            mask = _mask(values[self.options.mask], f"{location}#{row}") if self.options.mask else None
            return [Record(image, text, source or self.manifest.name, human_mask=mask) for text in instructions]
        except ValueError as error:
            return [BadRecord(str(error), {"file": self._packs.at(location), "row": row}, image)]

    def _cell(self, location: str, row: int, column: str, read_file: Callable[[str], bytes]) -> bytes:
        try:
            value = self._packs.persist(lambda: _row_groups.cell(self._packs, location, row, column))
        except StorageFailed:
            raise
        except (*_ERRORS, KeyError) as error:
            problem = " ".join(str(error).split())
            raise BadImage(f"row {row:,} of {self._packs.at(location)} cannot be read: {problem}") from error
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str):
            return read_file(value)
        if value is None:
            raise BadImage(f"row {row:,} of {self._packs.at(location)} has nothing in column '{column}'")
        if len(value) > MAX_FILE_BYTES:
            raise BadImage(f"'{location}#{row}' has {len(value):,} bytes, the limit is {MAX_FILE_BYTES:,}")
        return bytes(value)


class _RowGroups:
    """The columns of row groups that this process read last, `KEPT_BYTES` of them; shared by its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Any, ...], pa.ChunkedArray] = OrderedDict()

    def cell(self, packs: PackFolder, location: str, row: int, column: str) -> Any:
        """A value of a column. Raises what `_ERRORS` lists, or KeyError where there is no such column."""
        ends = _ends(packs, location)
        group = bisect.bisect_right(ends, row)
        if group == len(ends):
            raise ValueError("the file has fewer rows than when the plan was made")
        # One at a time: the threads of a shard mostly want the same group.
        with self._lock:
            key = (packs, location, group, column)
            if key not in self._kept:
                with packs.open(location) as stream, pq.ParquetFile(stream) as file:
                    self._kept[key] = file.read_row_group(group, columns=[column]).column(column)
            self._kept.move_to_end(key)
            values = self._kept[key]
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return values[row - (ends[group - 1] if group else 0)].as_py()


_row_groups = _RowGroups()


@lru_cache(maxsize=256)
def _ends(packs: PackFolder, location: str) -> list[int]:
    """For each row group the number of rows up to its end."""
    with packs.open(location) as stream:
        metadata = pq.read_metadata(stream)
    return list(accumulate(metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)))


def _mask(value: Any, cell: str) -> str | None:
    match value:
        case None | "" | {"bytes": None, "path": None}:
            return None
        case str(text) if not text.startswith("{"):
            return mask_spec("file", text)
        case str(text):
            value = from_json(text, allow_inf_nan=False)
        case {"bytes": None, "path": str(path)}:
            return mask_spec("file", path)
        case bytes() | {"bytes": bytes()}:
            return mask_spec("file", cell)
    match value:
        case {"size": size, "counts": counts}:
            return mask_spec("rle", {"size": size, "counts": counts.decode() if isinstance(counts, bytes) else counts})
        case dict(spec) if len(spec) == 1:
            return mask_spec(*next(iter(spec.items())))
    raise ValueError("the mask is neither a COCO RLE nor an object with one key such as polygons")


def _top(chunk: pq.ColumnChunkMetaData) -> str:
    return str(chunk.path_in_schema).partition(".")[0]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_words(kind: pa.DataType) -> bool:
    return _is_text(kind) or ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind) or _is_text(kind)


def _is_mask(kind: pa.DataType) -> bool:
    return _is_image(kind) or (pa.types.is_struct(kind) and {"size", "counts"} <= {field.name for field in kind})
