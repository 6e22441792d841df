"""What the stages share: the output of one shard, rows grouped by image, and decoding ahead of the model."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.errors import BadImage
from pipeline.images import decode_image
from pipeline.schemas import reject_row

Row = dict[str, Any]
"""A row of a table of `pipeline.schemas` as `pyarrow.Table.to_pylist` gives it."""


class Config(BaseModel):
    """Base of every section of a profile: an unknown key is an error, a loaded section never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass
class Output:
    """What a stage makes of one shard: rows of its table, reject rows, and figures that add up."""

    rows: list[Row] = field(default_factory=list)
    rejects: list[Row] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Output") -> None:
        """Adds the output of further items of the same shard."""
        self.rows += other.rows
        self.rejects += other.rejects
        for key, value in other.stats.items():
            self.stats[key] = self.stats.get(key, 0) + value


def group_by(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """Rows by the value of a column, both in first-seen order."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def reject(row: Row, error: Exception, stage: str, expert: str | None = None) -> Row:
    """The reject row of a plan or sample row that failed; `input` is the row as JSON, without masks' bytes."""
    plain = {key: value for key, value in row.items() if key != "human_mask" or isinstance(value, str)}
    return reject_row(error, stage=stage, uuid=row["uuid"], image=row["image"], expert=expert, replay=json.dumps(plain))


def decode_ahead(
    samples: Mapping[str, list[Row]], encoded: Mapping[str, bytes], ahead: int = 2
) -> Iterator[tuple[str, np.ndarray | BadImage]]:
    """Each image of these samples, grouped by image, with its pixels, or the error that says why it has none.

    Pixels are uint8 RGB (height, width, 3) of the size that the samples say. The next `ahead` images are
    decoded in two threads while the caller works on this one.
    """

    def pixels(image: str) -> np.ndarray | BadImage:
        if image not in encoded:
            return BadImage("the image could be read when it was loaded, and no longer can")
        try:
            decoded = decode_image(encoded[image])
        except BadImage as error:
            return error
        height, width = decoded.shape[:2]
        sample = samples[image][0]
        if (width, height) != (sample["width"], sample["height"]):
            before = f"{sample['width']}x{sample['height']}"
            return BadImage(f"the image is {width}x{height}, and was {before} when it was loaded; say --fresh")
        return decoded

    with ThreadPoolExecutor(max_workers=2) as pool:
        waiting = iter(samples)
        running: list[tuple[str, Future[np.ndarray | BadImage]]] = [
            (image, pool.submit(pixels, image)) for image in islice(waiting, ahead)
        ]
        while running:
            image, future = running.pop(0)
            result = future.result()
            running.extend((later, pool.submit(pixels, later)) for later in islice(waiting, 1))
            yield image, result
