"""Ground: runs one expert over a shard, one call per image, and turns its candidates into table rows."""

from typing import Any

import numpy as np

from experts.base import Candidate, Expert, Request
from pipeline.errors import BadImage
from pipeline.masks import encode_heatmap, encode_rle, mask_box
from stages.base import Output, Row, decode_ahead, group_by, reject


class Ground:
    """One expert as a stage. `name` is its name in the profile, which may differ from its module's."""

    def __init__(self, name: str, expert: Expert, version: str) -> None:
        self.name, self.expert, self.version = name, expert, version

    def run(self, samples: list[Row], encoded: dict[str, bytes]) -> Output:
        """Candidate rows of one shard; an image on which the expert fails costs that image's candidates only."""
        output = Output(stats={"dropped": 0})
        pairs = group_by(samples, "image")
        for image, pixels in decode_ahead(pairs, encoded):
            rows = pairs[image]
            try:
                if isinstance(pixels, BadImage):
                    raise pixels
                found = self._ground(pixels, rows)
            # An expert is third-party code and may raise anything; whatever it is costs this image only.
            except Exception as error:  # noqa: BLE001
                output.rejects.extend(reject(row, error, "ground", self.name) for row in rows)
                continue
            for row, candidates in zip(rows, found, strict=True):
                kept = [candidate for candidate in candidates if self._counts(candidate, output.stats)]
                output.rows.extend(self._candidate_row(row, k, candidate) for k, candidate in enumerate(kept))
        return output

    def _ground(self, pixels: np.ndarray, rows: list[Row]) -> list[list[Candidate]]:
        found = self.expert.ground(pixels, [Request(row["instruction"], row["phrases"]) for row in rows])
        if len(found) != len(rows):
            raise ValueError(f"the expert answered {len(found)} of {len(rows)} requests")
        for request_candidates in found:
            for candidate in request_candidates:
                check_candidate(candidate, pixels.shape[:2])
        return found

    @staticmethod
    def _counts(candidate: Candidate, stats: dict[str, float]) -> bool:
        """Whether the mask says anything: an empty or a full one is dropped, and counted."""
        says_something = bool(candidate.mask.any() and not candidate.mask.all())
        stats["dropped"] += not says_something
        return says_something

    def _candidate_row(self, row: Row, k: int, candidate: Candidate) -> dict[str, Any]:
        return {
            "uuid": row["uuid"],
            "candidate_id": f"{row['uuid']}/{self.name}/{k}",
            "expert_version": self.version,
            "phrase": candidate.phrase,
            "box": mask_box(candidate.mask) if candidate.box is None else candidate.box,
            "score": float(candidate.score),
            "area": float(candidate.mask.mean()),
            "mask": encode_rle(candidate.mask),
            "heatmap": None if candidate.heatmap is None else encode_heatmap(candidate.heatmap),
        }


def check_candidate(candidate: Candidate, shape: tuple[int, ...]) -> None:
    """Holds an expert to what `Candidate` promises, before anything of it reaches a table.

    Raises:
        ValueError: mask or heatmap is not of the image's `shape` (height, width) or has other values than promised,
            score is not in [0, 1], or box is not four finite numbers.
        TypeError: mask is not bool, or phrase no string.
    """
    mask, heatmap, box = candidate.mask, candidate.heatmap, candidate.box
    if mask.dtype != bool or not isinstance(candidate.phrase, str):
        raise TypeError(f"a candidate has a bool mask and a str phrase, not {mask.dtype} and {candidate.phrase!r}")
    if mask.shape != shape:
        raise ValueError(f"the mask is {mask.shape}, the image {shape}")
    if not 0 <= candidate.score <= 1:
        raise ValueError(f"the score is {candidate.score}, not in [0, 1]")
    if heatmap is not None and (heatmap.shape != shape or not (heatmap.min() >= 0 and heatmap.max() <= 1)):
        raise ValueError(f"the heatmap is {heatmap.shape} of [{heatmap.min()}, {heatmap.max()}], not {shape} of [0, 1]")
    if box is not None and not (len(box) == 4 and np.isfinite(np.asarray(box, dtype=np.float64)).all()):
        raise ValueError(f"the box is {box}, not four finite numbers")
