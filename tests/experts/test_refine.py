import cv2
import numpy as np
import pytest

from experts.refine import enlarge, refine, shrink, tidy
from pipeline.masks import mask_iou


def _disc(height: int, width: int, radius: int) -> np.ndarray:
    canvas = np.zeros((height, width), np.uint8)
    return cv2.circle(canvas, (width // 2, height // 2), radius, 1, cv2.FILLED) > 0


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(480, 640, (192, 256)), (100, 60, (100, 60)), (3000, 1000, (256, 85))]
)
def test_image_is_shrunk_to_the_working_size_and_never_grown(height, width, expected):
    small = shrink(np.zeros((height, width, 3), np.uint8))
    assert small is not None and small.shape == (*expected, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 500), (500, 2), (15, 15), (4000, 100)])
def test_image_too_small_or_thin_is_refused(height, width):
    assert shrink(np.zeros((height, width, 3), np.uint8)) is None


def test_enlarged_mask_covers_the_same_part_of_the_image():
    assert mask_iou(enlarge(_disc(120, 160, 40), 480, 640), _disc(480, 640, 160)) > 0.97
    same = _disc(120, 160, 40)
    np.testing.assert_array_equal(enlarge(same, 120, 160), same)


def test_rough_mask_is_drawn_to_the_edges_of_the_object():
    truth = _disc(200, 240, 60)
    noise = np.random.default_rng(0).integers(-12, 13, (200, 240, 3))
    image = np.clip(np.where(truth[..., None], (200, 60, 40), (60, 110, 160)) + noise, 0, 255).astype(np.uint8)
    rough = np.roll(_disc(200, 240, 55), 6, axis=1)
    refined = refine(image, rough)
    assert mask_iou(refined, truth) > 0.97 > mask_iou(rough, truth)
    np.testing.assert_array_equal(refine(image, rough), refined)


def test_rough_mask_is_kept_where_the_image_shows_no_edge():
    rough = _disc(100, 100, 20)
    assert mask_iou(refine(np.full((100, 100, 3), 90, np.uint8), rough), rough) >= 0.5


def test_tidy_drops_specks_and_fills_pinholes_but_keeps_a_ring_open():
    mask = _disc(100, 100, 40)
    holed = mask.copy()
    holed[48:52, 48:52] = False
    holed[2:5, 2:5] = True
    assert mask_iou(tidy(holed), mask) > 0.98
    ring = mask & ~_disc(100, 100, 32)
    assert not tidy(ring)[50, 50]
    assert not tidy(np.zeros((5, 5), bool)).any()
