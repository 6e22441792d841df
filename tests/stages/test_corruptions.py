import cv2
import numpy as np
import pytest

from pipeline.masks import mask_iou
from stages.corruptions import CORRUPTIONS, corrupted


def _two_discs() -> np.ndarray:
    canvas = np.zeros((80, 120), np.uint8)
    cv2.circle(canvas, (35, 40), 18, 1, -1)
    cv2.circle(canvas, (85, 40), 10, 1, -1)
    return canvas > 0


def _beside() -> np.ndarray:
    mask = np.zeros((80, 120), dtype=bool)
    mask[60:78, 90:118] = True
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_every_corruption_is_wrong_and_not_empty(seed: int) -> None:
    human = _two_discs()
    made = dict(corrupted(human, [_beside()], np.random.default_rng(seed)))
    assert set(made) == set(CORRUPTIONS)
    for mask in made.values():
        assert mask.dtype == bool
        assert mask.any()
        assert mask_iou(mask, human) < 0.9


def test_each_does_what_its_name_says() -> None:
    human, beside = _two_discs(), _beside()
    made = dict(corrupted(human, [beside], np.random.default_rng(0)))
    assert not (made["eroded"] & ~human).any()
    assert not (human & ~made["dilated"]).any()
    assert not (made["cut"] & ~human).any()
    assert (made["merged"] == human | beside).all()
    assert made["target dropped"].sum() == human[:, 70:].sum()
    assert made["elsewhere"].sum() == human.sum()
    assert made["whole image"].all()


def test_a_mask_of_one_part_alone_on_its_image_is_neither_merged_nor_dropped() -> None:
    made = dict(corrupted(_beside(), [], np.random.default_rng(0)))
    assert not {"merged", "target dropped"} & set(made)


def test_one_pixel_is_corrupted_without_error() -> None:
    point = np.zeros((9, 9), dtype=bool)
    point[4, 4] = True
    assert all(mask.any() for _, mask in corrupted(point, [], np.random.default_rng(0)))
