"""Ground: runs one expert over a shard, a few images at a time, and turns its candidates into table rows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pydantic import Field

from experts.base import Candidate, Expert, Request, Scene
from pipeline.errors import BadImage, InputError
from pipeline.masks import encode_heatmap, encode_rle, mask_box
from stages.base import Config, Output, Row, decode_ahead, group_by, reject

_BATCH_BYTES = 2**32
"""Memory for the masks and maps of the images that are grounded at once, as far as it can be told before."""
_PIXEL_BYTES = 10
"""Of a text, for each pixel of its image: five masks, and a map in float32."""


class Keep(Config):
    """Which of an expert's candidates for a pair are kept: at most `candidates`, and of any two whose masks have an
    IoU over `duplicate_iou` the better."""

    candidates: int = Field(16, ge=1)
    duplicate_iou: float = Field(0.9, gt=0, le=1)


class Ground:
    """One expert as a stage. `name` is its name in the profile, which may differ from its module's.

    Its figures count the masks not kept: `dropped` are empty, full or not a number, `duplicates` and `capped` as
    `Keep` says. Every call of the expert is made within a `watching()`, which may end the process if it hangs.
    """

    def __init__(
        self,
        name: str,
        expert: Expert,
        version: str,
        keep: Keep | None = None,
        watching: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.name, self.expert, self.version, self.keep = name, expert, version, keep or Keep()
        self.watching = watching

    def run(self, samples: list[Row], encoded: dict[str, bytes]) -> Output:
        """Candidate rows of one shard; an image on which the expert fails costs that image's candidates only."""
        output = Output(stats={"dropped": 0, "duplicates": 0, "capped": 0})
        pairs = group_by(samples, "image")
        batch: list[tuple[np.ndarray, list[Row]]] = []
        held = 0
        for image, pixels in decode_ahead(pairs, encoded, ahead=max(2, self.expert.images_at_once)):
            if isinstance(pixels, BadImage):
                self._reject(pairs[image], pixels, output)
                continue
            needed = memory_of(pixels, pairs[image])
            if len(batch) >= self.expert.images_at_once or held + needed > _BATCH_BYTES:
                self._ground(batch, output)
                batch, held = [], 0
            batch.append((pixels, pairs[image]))
            held += needed
        self._ground(batch, output)
        return output

    def _ground(self, images: list[tuple[np.ndarray, list[Row]]], output: Output) -> None:
        if not images:
            return
        try:
            found = self._found(images)
        except InputError:
            # As a key that an endpoint refuses: no image's fault, and it would be every image's.
            raise
        # An expert is third-party code and may raise anything; alone, an image shows whether it is the culprit.
        except Exception as error:  # noqa: BLE001
            if len(images) == 1:
                self._reject(images[0][1], error, output)
                return
        else:
            for (_, rows), by_request in zip(images, found, strict=True):
                for row, candidates in zip(rows, by_request, strict=True):
                    output.rows.extend(self._candidate_rows(row, candidates, output.stats))
            return
        # Outside the handler, whose error's traceback keeps the failed pass's tensors in memory.
        for image in images:
            self._ground([image], output)

    def _found(self, images: list[tuple[np.ndarray, list[Row]]]) -> list[list[list[Candidate]]]:
        scenes = [
            Scene(pixels, [Request(row["instruction"], row["phrases"]) for row in rows]) for pixels, rows in images
        ]
        with self.watching():
            found = self.expert.ground_batch(scenes)
        if len(found) != len(scenes):
            raise ValueError(f"the expert answered for {len(found)} of {len(scenes)} images")
        for scene, by_request in zip(scenes, found, strict=True):
            if len(by_request) != len(scene.requests):
                raise ValueError(f"the expert answered {len(by_request)} of {len(scene.requests)} requests")
            for candidate in (candidate for candidates in by_request for candidate in candidates):
                check_candidate(candidate, scene.image.shape[:2])
        return found

    def _reject(self, rows: list[Row], error: Exception, output: Output) -> None:
        output.rejects.extend(reject(row, error, "ground", self.name) for row in rows)

    def _candidate_rows(self, row: Row, candidates: Sequence[Candidate], stats: dict[str, float]) -> list[Row]:
        telling = [candidate for candidate in candidates if says_something(candidate)]
        masks = [encode_rle(candidate.mask) for candidate in telling]
        different = without_duplicates(telling, masks, self.keep.duplicate_iou)
        kept = best_of_each_phrase_first([telling[k] for k in different])[: self.keep.candidates]
        stats["dropped"] += len(candidates) - len(telling)
        stats["duplicates"] += len(telling) - len(different)
        stats["capped"] += len(different) - len(kept)
        rows = [(telling[different[k]], masks[different[k]]) for k in sorted(kept)]
        return [self._candidate_row(row, k, candidate, mask) for k, (candidate, mask) in enumerate(rows)]

    def _candidate_row(self, row: Row, k: int, candidate: Candidate, mask: dict[str, Any]) -> Row:
        return {
            "uuid": row["uuid"],
            "candidate_id": f"{row['uuid']}/{self.name}/{k}",
            "expert_version": self.version,
            "phrase": candidate.phrase,
            "box": mask_box(candidate.mask) if candidate.box is None else candidate.box,
            "score": float(candidate.score),
            "area": float(candidate.mask.mean()),
            "mask": mask,
            "heatmap": None if candidate.heatmap is None else encode_heatmap(candidate.heatmap),
        }


def memory_of(pixels: np.ndarray, rows: Sequence[Row]) -> int:
    """Bytes that the candidates of an image, uint8 (height, width, 3), may take before they are rows of a table."""
    texts = {text for row in rows for text in (row["instruction"], *row["phrases"])}
    return pixels.shape[0] * pixels.shape[1] * len(texts) * _PIXEL_BYTES


def says_something(candidate: Candidate) -> bool:
    """Whether a mask is neither empty nor full, and its score, box and heatmap are numbers."""
    figures = [candidate.score, *(candidate.box if candidate.box is not None else [])]
    if np.isnan(np.asarray(figures, dtype=np.float64)).any():
        return False
    if candidate.heatmap is not None and np.isnan(candidate.heatmap).any():
        return False
    return bool(candidate.mask.any() and not candidate.mask.all())


def without_duplicates(candidates: Sequence[Candidate], masks: Sequence[dict[str, Any]], iou: float) -> list[int]:
    """Indices, best first, of candidates of which no two have masks (COCO RLE, parallel) over this IoU."""
    order = sorted(range(len(candidates)), key=lambda k: -candidates[k].score)
    if len(order) < 2:
        return order
    overlap = np.asarray(coco.iou(list(masks), list(masks), [0] * len(masks)))
    kept: list[int] = []
    for k in order:
        if not (overlap[k, kept] > iou).any():
            kept.append(k)
    return kept


def best_of_each_phrase_first(candidates: Sequence[Candidate]) -> list[int]:
    """Indices of candidates that come best first, reordered: each phrase's best, each one's second best, and so on.

    So that a cap does not cost a phrase that scores low all of its candidates.
    """
    ranks: dict[str, int] = {}
    rank_of = []
    for candidate in candidates:
        rank_of.append(ranks.get(candidate.phrase, 0))
        ranks[candidate.phrase] = rank_of[-1] + 1
    return sorted(range(len(candidates)), key=lambda k: rank_of[k])


def check_candidate(candidate: Candidate, shape: tuple[int, ...]) -> None:
    """Holds an expert to what `Candidate` promises, before anything of it reaches a table. Not-a-number passes.

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
    if candidate.score < 0 or candidate.score > 1:
        raise ValueError(f"the score is {candidate.score}, not in [0, 1]")
    if heatmap is not None and (heatmap.shape != shape or heatmap.min() < 0 or heatmap.max() > 1):
        raise ValueError(f"the heatmap is {heatmap.shape} of [{heatmap.min()}, {heatmap.max()}], not {shape} of [0, 1]")
    if box is not None and (len(box) != 4 or np.isinf(np.asarray(box, dtype=np.float64)).any()):
        raise ValueError(f"the box is {box}, not four finite numbers")
