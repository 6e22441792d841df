"""Score: the discriminator's d and quality, and the DWSL weight, of every candidate and human mask."""

from collections.abc import Mapping

import numpy as np

from pipeline.errors import BadImage
from pipeline.masks import decode_rle
from stages.base import Output, Row, decode_ahead, group_by, reject
from stages.discriminators import Scorer
from stages.examples import HUMAN
from stages.weights import WeightConfig


class Score:
    """Scores masks. Without a discriminator d, quality and weight are null, and no image is decoded."""

    def __init__(self, discriminator: Scorer | None, weight: WeightConfig) -> None:
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
            if isinstance(pixels, BadImage):
                output.rejects += [reject(sample, pixels, "score") for sample in of_image[image]]
            else:
                output.rows += self._scored(self.discriminator, image, pixels, of_image[image], masks)
        return output

    def _scored(
        self,
        discriminator: Scorer,
        image: str,
        pixels: np.ndarray,
        samples: list[Row],
        cells: Mapping[str, dict[str, Row]],
    ) -> list[Row]:
        asked = [(sample, name, decode_rle(cell)) for sample in samples for name, cell in cells[sample["uuid"]].items()]
        scores = discriminator.score(
            image,
            pixels,
            [(sample["instruction"], mask) for sample, _, mask in asked],
            rivals=[mask for _, name, mask in asked if not name.endswith(f"/{HUMAN}")],
        )
        return [
            _row(sample["uuid"], name)
            | {
                "d": score.d,
                "quality": score.quality,
                "weight": self.weight.weight(score.d, score.quality),
                "fold": score.fold,
                "discriminator": discriminator.id,
            }
            for (sample, name, _), score in zip(asked, scores, strict=True)
        ]


def _masks(sample: Row) -> dict[str, Row]:
    return {f"{sample['uuid']}/{HUMAN}": sample["human_mask"]} if sample["human_mask"] else {}


def _row(uuid: str, candidate_id: str) -> Row:
    unknown = dict.fromkeys(("d", "quality", "weight", "fold", "discriminator"))
    return {"uuid": uuid, "candidate_id": candidate_id, **unknown}
