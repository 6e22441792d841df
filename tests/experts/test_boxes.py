import pytest
import torch

from experts.boxes import BoxModelOptions, best_boxes, to_xyxy_px

SEGMENTER = {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}


def _best(boxes: list, scores: list, **options) -> list[tuple[tuple[float, ...], float]]:
    chosen = BoxModelOptions.model_validate({"checkpoint": "unused", "segmenter": SEGMENTER} | options)
    found = best_boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), 100, 200, chosen)
    return [(detection.box, round(detection.score, 4)) for detection in found]


def test_centre_and_size_become_corners_in_pixels():
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.75, 0.1, 0.2]]])
    expected = torch.tensor([[[0, 0, 200, 100], [40, 65, 60, 85]]])
    torch.testing.assert_close(to_xyxy_px(boxes, height=100, width=200), expected.float())


def test_boxes_come_best_first_and_clipped_to_the_image():
    assert _best([[-5.0, 10, 20, 30], [150, 50, 250, 120]], [0.4, 0.6]) == [
        ((150, 50, 200, 100), 0.6),
        ((0, 10, 20, 30), 0.4),
    ]


def test_a_box_at_the_threshold_stays_and_one_below_goes():
    boxes = [[0.0, 0, 10, 10], [50, 50, 60, 60]]
    assert [score for _, score in _best(boxes, [0.5, 0.49], threshold=0.5)] == [0.5]


@pytest.mark.parametrize(
    "box", [[-20, 10, -5, 30], [10, 110, 20, 130], [30, 10, 20, 30], [5, 5, 5, 9], [float("nan"), 0, 10, 10]]
)
def test_boxes_outside_the_image_empty_or_not_numbers_are_dropped(box):
    assert _best(box, [0.9]) == []


def test_of_boxes_that_overlap_only_the_best_stays():
    # IoU of the first two is 90 / 110 = 0.82, of the third with the first 50 / 150 = 0.33.
    boxes = [[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10]]
    scores = [0.5, 0.7, 0.6]
    assert [score for _, score in _best(boxes, scores)] == [0.7, 0.6]
    assert [score for _, score in _best(boxes, scores, nms=0.9)] == [0.7, 0.6, 0.5]
    assert [score for _, score in _best(boxes, scores, nms=0.3)] == [0.7]


def test_half_precision_and_no_boxes_are_fine():
    assert _best([], []) == []
    chosen = BoxModelOptions.model_validate({"checkpoint": "unused", "segmenter": SEGMENTER})
    boxes = torch.tensor([[0.0, 0, 10, 10]], dtype=torch.bfloat16)
    assert len(best_boxes(boxes, torch.tensor([0.5], dtype=torch.bfloat16), 100, 200, chosen)) == 1
