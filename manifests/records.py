"""What a reader yields: records of the manifest, good or bad, in a stable order."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict


class ReaderOptions(BaseModel):
    """Base of a reader's `options` in a manifest: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Record:
    """One image-instruction pair as the dataset gives it.

    `wordings` are further instructions for the same target; `human_mask` is a mask specification for
    `pipeline.masks.mask_from_spec`, a JSON string, or None; `source` names the part of the dataset.
    """

    image: str
    instruction: str
    source: str
    wordings: tuple[str, ...] = ()
    human_mask: str | None = None


@dataclass(frozen=True)
class BadRecord:
    """A line or annotation that gives no pair: it ends in the rejects table with `input` to find and mend it."""

    message: str
    input: dict[str, Any]
    image: str | None = None


class Reader(Protocol):
    """A source format. Constructed from a manifest; picklable, because workers read images through it."""

    Options: ClassVar[type[ReaderOptions]]

    def records(self) -> Iterator[Record | BadRecord]:
        """Every record of the dataset, the same order each time, without holding the dataset in memory.

        Raises:
            InputError: an annotation file is missing or not of the format at all.
        """

    def fingerprint(self) -> str | None:
        """Checksum that is another one where `records` may give others, None where only reading them tells.

        Raises:
            InputError: an annotation file is missing or unreadable.
        """

    def read(self, path: str) -> bytes:
        """Encoded bytes of an image named by a record.

        Raises:
            BadImage: it is missing, unreadable, or outside the image root.
        """

    def read_mask(self, path: str) -> bytes:
        """Encoded bytes of a file named by a record's mask specification.

        Raises:
            BadImage: it is missing, unreadable, or outside the folder of the masks.
        """


def mask_spec(kind: str, value: Any) -> str:
    """A mask specification as the JSON string a `Record` carries; see `pipeline.masks.mask_from_spec`."""
    return json.dumps({kind: value}, separators=(",", ":"))
