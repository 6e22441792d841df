"""A segmenter without a model: the mask of a box is the box, that of a point three squares around it."""

from collections.abc import Sequence

import numpy as np

from experts.segmenter import Encoded, Masks, Segmenter, SegmenterOptions


class BoxSegmenter(Segmenter):
    summary = "fills boxes"
    Options = SegmenterOptions

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoded]:
        return [Encoded(None, *image.shape[:2]) for image in images]

    def segment_boxes(self, encoded: Encoded, boxes: np.ndarray) -> Masks:
        masks = np.zeros((len(boxes), encoded.height, encoded.width), dtype=bool)
        for mask, (x1, y1, x2, y2) in zip(masks, np.round(boxes).astype(int), strict=True):
            mask[max(0, y1) : y2, max(0, x1) : x2] = True
        return Masks(masks, np.full(len(boxes), 0.9, np.float32), np.full(len(boxes), 0.95, np.float32))

    def segment_points(self, encoded: Encoded, points: np.ndarray) -> Masks:
        boxes = [[x - r, y - r, x + r, y + r] for x, y in points for r in (4, 12, 24)]
        return self.segment_boxes(encoded, np.asarray(boxes, dtype=np.float32))
