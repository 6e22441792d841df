"""Score: the discriminator's d and quality, and the DWSL weight, of every candidate and human mask."""

from collections.abc import Mapping

import numpy as np

from pipeline.errors import BadImage
from pipeline.masks import decode_rle
from stages.base import Output, Row, decode_ahead, group_by, reject
from stages.discriminator import HUMAN, Discriminator
from stages.weights import WeightConfig


class Score:
    """Scores masks. Without a discriminator d, quality and weight are null, and no image is decoded."""

    def __init__(self, discriminator: Discriminator | None, weight: WeightConfig) -> None:
        self.discriminator, self.weight = discriminator, weight

    def run(self, samples: list[Row], candidates: list[Row], encoded: Mapping[str, bytes]) -> Output:
        """One row per human mask and per candidate; rejects for the pairs of an image that cannot be decoded.

        Args:
            samples: rows of the table samples.
            candidates: rows of the table candidates of these samples.
            encoded: image path to encoded bytes.
        """
        masks = {sample["uuid"]: _masks(sample) for sample in samples}
        for row in candidates:
            masks[row["uuid"]][row["candidate_id"]] = row["mask"]
        if self.discriminator is None:
            return Output([_row(uuid, name) for uuid, cells in masks.items() for name in cells])
        output = Output()
        of_image = group_by((sample for sample in samples if masks[sample["uuid"]]), "image")
        for image, pixels in decode_ahead(of_image, encoded):
            for sample in of_image[image]:
                if isinstance(pixels, BadImage):
                    output.rejects.append(reject(sample, pixels, "score"))
                else:
                    output.rows += self._scored(self.discriminator, sample, masks[sample["uuid"]], pixels)
        return output

    def _scored(
        self, discriminator: Discriminator, sample: Row, cells: dict[str, Row], pixels: np.ndarray
    ) -> list[Row]:
        masks = [decode_rle(cell) for cell in cells.values()]
        scores = discriminator.score(sample["image"], pixels, sample["instruction"], masks)
        return [
            _row(sample["uuid"], name)
            | {
                "d": score.d,
                "quality": score.quality,
                "weight": self.weight.weight(score.d, score.quality),
                "fold": score.fold,
                "discriminator": discriminator.id,
            }
            for name, score in zip(cells, scores, strict=True)
        ]


def _masks(sample: Row) -> dict[str, Row]:
    return {f"{sample['uuid']}/{HUMAN}": sample["human_mask"]} if sample["human_mask"] else {}


def _row(uuid: str, candidate_id: str) -> Row:
    unknown = dict.fromkeys(("d", "quality", "weight", "fold", "discriminator"))
    return {"uuid": uuid, "candidate_id": candidate_id, **unknown}
