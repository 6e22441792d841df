"""What a detector is: an expert that finds boxes for texts and has a segmenter turn them into masks."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from experts.base import Candidate, ExpertOptions, Placement, Scene, per_request, unique_texts
from experts.model import TorchExpert
from experts.segmenter import AnySegmenterOptions, load_segmenter


class DetectorOptions(ExpertOptions):
    """Options of every detector. Of the boxes that score at least `threshold` for a text the best `top` are kept."""

    segmenter: AnySegmenterOptions
    top: int = Field(5, ge=1, le=100)
    threshold: float = Field(0.1, ge=0, le=1)


@dataclass(frozen=True)
class Detection:
    """A box x1, y1, x2, y2 in pixels, inside the image, and its score in [0, 1]."""

    box: tuple[float, float, float, float]
    score: float


class DetectorExpert(TorchExpert):
    """Any detector with any segmenter: a subclass says in `detect` how texts become boxes."""

    asks: ClassVar[Literal["phrases", "instruction"]] = "phrases"
    """Which texts of a request are looked for."""
    options: DetectorOptions

    def __init__(self, options: DetectorOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        self.segmenter = load_segmenter(options.segmenter, self.placement)

    @abstractmethod
    def detect(self, images: Sequence[np.ndarray], texts: Sequence[Sequence[str]]) -> list[list[list[Detection]]]:
        """Detections for each text of each image, in any order and number; `texts` are unique within an image."""

    def find(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        texts = [unique_texts(scene.requests, self.asks) for scene in scenes]
        asked = [k for k in range(len(scenes)) if texts[k]]
        detected = self.detect([scenes[k].image for k in asked], [texts[k] for k in asked]) if asked else []
        kept = {
            k: {text: self._best(found) for text, found in zip(texts[k], detections, strict=True)}
            for k, detections in zip(asked, detected, strict=True)
        }
        masks = self._masks(scenes, kept)
        answers = []
        for k, scene in enumerate(scenes):
            found = {
                text: [Candidate(masks[k][d.box], d.score, text, box=d.box) for d in detections]
                for text, detections in kept.get(k, {}).items()
            }
            answers.append(per_request(scene.requests, self.asks, found))
        return answers

    def _best(self, detections: Sequence[Detection]) -> list[Detection]:
        good = [detection for detection in detections if detection.score >= self.options.threshold]
        return sorted(good, key=lambda detection: -detection.score)[: self.options.top]

    def _masks(
        self, scenes: Sequence[Scene], kept: dict[int, dict[str, list[Detection]]]
    ) -> dict[int, dict[tuple[float, ...], np.ndarray]]:
        """For each image with detections: the mask of each different box."""
        boxes = {
            k: list(dict.fromkeys(detection.box for found in by_text.values() for detection in found))
            for k, by_text in kept.items()
        }
        with_boxes = [k for k, found in boxes.items() if found]
        encoded = self.segmenter.encode([scenes[k].image for k in with_boxes]) if with_boxes else []
        masks: dict[int, dict[tuple[float, ...], np.ndarray]] = {k: {} for k in range(len(scenes))}
        for k, image in zip(with_boxes, encoded, strict=True):
            segmented = self.segmenter.segment_boxes(image, np.asarray(boxes[k], dtype=np.float32))
            masks[k] = dict(zip(boxes[k], segmented.masks, strict=True))
        return masks
