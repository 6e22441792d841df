"""Load: reads a shard's images and human masks, and turns plan rows into sample rows or rejects."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import BadImage, BadMask, ItemError
from pipeline.images import decode_image
from pipeline.masks import encode_rle, mask_from_spec
from pipeline.schemas import reject_row
from stages.base import Output, Row, group_by, reject

READ_THREADS = 16
"""Images of a shard read at once: storage answers slowly, and a waiting thread costs nothing."""


def read_images(images: Iterable[str], read: Callable[[str], bytes]) -> dict[str, bytes | BadImage]:
    """Encoded bytes of each image, or the error that says why there are none; read in threads."""

    def encoded(image: str) -> bytes | BadImage:
        try:
            return read(image)
        except BadImage as error:
            return error

    names = list(images)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return dict(zip(names, pool.map(encoded, names), strict=True))


class Load:
    """Plan rows to sample rows without the instruct stage's columns."""

    def __init__(self, read_mask: Callable[[str], bytes]) -> None:
        self.read_mask = read_mask

    def run(self, plan: list[Row], encoded: dict[str, bytes | BadImage]) -> Output:
        """Sample rows (width, height and human mask filled in) and rejects of one shard.

        `encoded` holds every image of the plan rows, as `read_images` returns it.
        """
        output = Output()
        good = []
        for row in plan:
            if row["error"]:
                output.rejects.append(bad_record_row(row))
            else:
                good.append(row)
        for image, rows in group_by(good, "image").items():
            try:
                data = encoded[image]
                if isinstance(data, BadImage):
                    raise data
                height, width = decode_image(data).shape[:2]
            except BadImage as error:
                output.rejects.extend(reject(row, error, "load") for row in rows)
                continue
            for row in rows:
                try:
                    output.rows.append(self._sample(row, height, width))
                except ItemError as error:
                    output.rejects.append(reject(row, error, "load"))
        return output

    def _sample(self, row: Row, height: int, width: int) -> Row:
        human_mask = None
        if row["human_mask"] is not None:
            try:
                human_mask = encode_rle(mask_from_spec(row["human_mask"], height, width, self.read_mask))
            except BadImage as error:
                raise BadMask(f"the human mask's file: {error}") from error
        kept = ("uuid", "dataset", "source", "branch", "image", "instruction")
        return {
            **{column: row[column] for column in kept},
            "width": width,
            "height": height,
            "instructions": [row["instruction"], *row["wordings"]],
            "human_mask": human_mask,
        }


def bad_record_row(row: Row) -> Row:
    """The reject row of a plan row that the reader or the plan already found bad."""
    bad = reject_row(ItemError(row["message"]), stage="read", image=row["image"], replay=row["input"])
    return {**bad, "error": row["error"]}
