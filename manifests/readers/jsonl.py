"""Reads JSON Lines: one object per line with an image, its instructions and, where there is one, a human mask."""

from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from io import BufferedReader
from typing import Any, ClassVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from manifests.readers.base import FileReader
from manifests.readers.files import open_stream
from manifests.records import BadRecord, Record, mask_spec
from pipeline.errors import InputError, validation_problem

_BOM = b"\xef\xbb\xbf"
_SHOWN = 2000
"""Characters of a bad line that its reject keeps."""


class Line(BaseModel):
    """One line. Give `instruction`, or `instructions` for several pairs that share the image and the mask.

    `image` is a path below the image root, or an http(s) URL where the manifest's `options.urls` allows it; so is the
    file of a mask, below `masks`.
    `mask` is an object with one key, see `pipeline.masks.mask_from_spec`: `{"rle": {"size": [h, w], "counts": …}}`,
    `{"polygons": [[x1, y1, x2, y2, …], …]}`, `{"box": [x1, y1, x2, y2]}` or `{"file": "path below masks.png"}`.
    `source` names the part of the dataset, by default the manifest's name. Further keys are ignored, except one
    that looks like a misspelling of a key that is absent.
    """

    image: str = Field(min_length=1)
    instruction: str | None = None
    instructions: list[str] | None = Field(None, min_length=1)
    mask: dict[str, Any] | None = Field(None, min_length=1, max_length=1)
    source: str | None = None


class JsonlReader(FileReader):
    """Reader of `.jsonl` files, also compressed (`.jsonl.gz`); the format is `Line`'s."""

    Line: ClassVar[type[BaseModel]] = Line

    def file_records(self, location: str) -> Iterator[Record | BadRecord]:
        """Records of one file, line by line; see `manifests.records.Reader`."""
        number = 0
        with open_stream(location) as stream:
            lines = BufferedReader(stream)
            try:
                for number, line in enumerate(lines, start=1):
                    text = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
                    if number == 1 and text.startswith(b"["):
                        raise InputError(f"{location}: is a JSON array; this reader takes one JSON object per line")
                    if text:
                        yield from self._line_records(text, location, number)
            except OSError as error:
                raise InputError(f"{location}: cannot be read beyond line {number}: {error}") from error

    def line_records(self, line: Any) -> list[Record]:
        """Records of one line, validated as `Line`.

        Raises:
            ValueError: its fields do not go together.
        """
        if (line.instruction is None) == (line.instructions is None):
            raise ValueError("give one of the fields 'instruction' and 'instructions'")
        spec = None if line.mask is None else mask_spec(*next(iter(line.mask.items())))
        source = line.source or self.manifest.name
        instructions = line.instructions or [line.instruction]
        return [Record(line.image, instruction, source, human_mask=spec) for instruction in instructions]

    def _line_records(self, text: bytes, location: str, number: int) -> list[Record | BadRecord]:
        image = None
        try:
            parsed = from_json(text, allow_inf_nan=False)
            if not isinstance(parsed, dict):
                raise ValueError("a line must be a JSON object")
            image = parsed["image"] if isinstance(parsed.get("image"), str) else None
            if problem := _misspelling(frozenset(parsed), frozenset(self.Line.model_fields)):
                raise ValueError(problem)
            return [*self.line_records(self.Line.model_validate(parsed))]
        except ValidationError as error:
            message = validation_problem(error)
        except ValueError as error:
            message = str(error)
        shown = text[:_SHOWN].decode(errors="replace")
        return [BadRecord(message, {"file": location, "line": number, "text": shown}, image)]


@lru_cache(maxsize=1000)
def _misspelling(keys: frozenset[str], known: frozenset[str]) -> str | None:
    unknown = sorted(keys - known)
    for key in sorted(known - keys):
        if close := get_close_matches(key, unknown, n=1, cutoff=0.8):
            return f"unknown field '{close[0]}', did you mean '{key}'?"
    return None
