"""Label: the human mask of a labelled pair, the fused candidates of an unlabelled one, with d and DWSL weight."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.errors import BadImage
from pipeline.masks import decode_rle, encode_heatmap, encode_rle, mask_iou, rle_area
from pipeline.schemas import LABELLED
from stages.base import Output, Row, decode_ahead, group_by, reject
from stages.discriminators import Scorer
from stages.examples import HUMAN
from stages.fuse import FusionConfig, fuse
from stages.weights import WeightConfig


class Label:
    """One label per pair. `fusion` says how candidates become one; without a discriminator d and weight are null."""

    def __init__(self, discriminator: Scorer | None, weight: WeightConfig, fusion: FusionConfig) -> None:
        self.discriminator, self.weight, self.fusion = discriminator, weight, fusion

    def run(self, samples: list[Row], candidates: list[Row], scores: list[Row], encoded: Mapping[str, bytes]) -> Output:
        """A row per pair, in the samples' order; rejects for unlabelled pairs whose image cannot be decoded.

        On labelled pairs candidates are fused too, for figures only, all sums: `pairs`, and for each expert alone,
        `fused`, and `best` (the best single candidate, chosen with the human mask at hand) `answered/<name>` and
        `iou_sum/<name>`. The sum divided by `pairs` is the mean IoU in which no answer counts as 0.

        Args:
            samples: rows of the table samples.
            candidates: rows of the table candidates of these samples, with the further key `expert`.
            scores: rows of the table scores of these samples.
            encoded: image path to encoded bytes.
        """
        of_pair = group_by(candidates, "uuid")
        scored = {row["candidate_id"]: row for row in scores}
        output, figures = Output(), Counter[str]()
        machine, of_image = [], group_by(samples, "image")
        for sample in samples:
            if sample["branch"] == LABELLED:
                output.rows.append(_human(sample, scored.get(f"{sample['uuid']}/{HUMAN}", {})))
                figures.update(self._figures(sample, of_pair.get(sample["uuid"], []), scored))
            elif sample["uuid"] in of_pair:
                machine.append(sample)
            else:
                output.rows.append(self._nothing(sample))
        output.stats = dict(figures)
        for group, pixels in self._with_pixels(machine, encoded):
            if isinstance(pixels, BadImage):
                output.rejects += [reject(sample, pixels, "label") for sample in group]
            else:
                rivals = [row for sample in of_image[group[0]["image"]] for row in of_pair.get(sample["uuid"], [])]
                output.rows += self._machine(group, of_pair, scored, pixels, rivals)
        order = {sample["uuid"]: k for k, sample in enumerate(samples)}
        output.rows.sort(key=lambda row: order[row["uuid"]])
        return output

    def _with_pixels(
        self, samples: list[Row], encoded: Mapping[str, bytes]
    ) -> Iterator[tuple[list[Row], np.ndarray | BadImage | None]]:
        of_image = group_by(samples, "image")
        if self.discriminator is None:
            yield from ((group, None) for group in of_image.values())
            return
        for image, pixels in decode_ahead(of_image, encoded):
            yield of_image[image], pixels

    def _machine(
        self,
        samples: list[Row],
        of_pair: Mapping[str, list[Row]],
        scored: Mapping[str, Row],
        pixels: np.ndarray | None,
        rivals: list[Row],
    ) -> list[Row]:
        """Labels of the unlabelled pairs of one image; `rivals` are the candidates of all its pairs."""
        rows = [self._fused(sample, of_pair[sample["uuid"]], scored) for sample in samples]
        if self.discriminator is not None and pixels is not None:
            whole = [(row, sample["instruction"]) for row, sample in zip(rows, samples, strict=True) if row["mask"]]
            asked = [(text, decode_rle(row["mask"])) for row, text in whole]
            others = [decode_rle(row["mask"]) for row in rivals]
            scores = self.discriminator.score(samples[0]["image"], pixels, asked, others)
            for (row, _), score in zip(whole, scores, strict=True):
                row |= {"d": score.d, "weight": self.weight.weight(score.d, score.quality)}
        return rows

    def _fused(self, sample: Row, candidates: list[Row], scores: Mapping[str, Row]) -> Row:
        fused = fuse(sample["instruction"], candidates, scores, self.fusion)
        mask = fused.mask
        if not mask.any():
            return self._nothing(sample)
        return self._nothing(sample) | {
            "mask": encode_rle(mask),
            "heatmap": encode_heatmap(fused.heatmap),
            "weight": None,
            "experts": sorted(fused.experts),
            "area": float(mask.mean()),
        }

    def _nothing(self, sample: Row) -> Row:
        return {
            "uuid": sample["uuid"],
            "kind": "machine",
            "mask": None,
            "heatmap": None,
            "d": None,
            "weight": 0.0,
            "fusion": self.fusion.rule,
            "experts": [],
            "area": None,
        }

    def _figures(self, sample: Row, candidates: list[Row], scores: Mapping[str, Row]) -> dict[str, float]:
        human = decode_rle(sample["human_mask"])
        figures: dict[str, float] = {"pairs": 1}
        if not candidates:
            return figures
        groups = group_by(candidates, "expert")
        for name, rows in [*groups.items(), ("fused", candidates)]:
            mask = fuse(sample["instruction"], rows, scores, self.fusion).mask
            figures[f"answered/{name}"] = int(mask.any())
            figures[f"iou_sum/{name}"] = mask_iou(mask, human)
        figures["answered/best"] = 1
        figures["iou_sum/best"] = max(mask_iou(decode_rle(row["mask"]), human) for row in candidates)
        return figures


def _human(sample: Row, score: Mapping[str, Any]) -> Row:
    return {
        "uuid": sample["uuid"],
        "kind": HUMAN,
        "mask": sample["human_mask"],
        "heatmap": None,
        "d": score.get("d"),
        "weight": score.get("weight"),
        "fusion": None,
        "experts": [],
        "area": rle_area(sample["human_mask"]),
    }
