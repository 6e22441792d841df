import cv2
import numpy as np
import pytest
import sklearn.datasets

from experts.base import Request
from experts.saliency import Saliency
from pipeline.masks import mask_iou

ANY = Request("the thing", ["thing"])


def _disc(contrast: int) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(0).integers(-6, 7, (240, 320, 3))
    truth = cv2.circle(np.zeros((240, 320), np.uint8), (150, 120), 50, 1, cv2.FILLED) > 0
    image = np.full((240, 320, 3), 110) + noise
    image[truth] += (contrast, 0, -contrast)
    return np.clip(image, 0, 255).astype(np.uint8), truth


def _ground(image, *requests):
    return Saliency(Saliency.Options()).ground(image, requests)


def test_what_stands_out_is_found_with_a_soft_map():
    image, truth = _disc(90)
    [found] = _ground(image, ANY)[0]
    assert mask_iou(found.mask, truth) > 0.9
    assert found.heatmap.dtype == np.float32 and found.heatmap.shape == truth.shape
    assert found.heatmap.min() >= 0 and found.heatmap.max() <= 1
    assert found.heatmap[truth].mean() > 0.8 > 0.2 > found.heatmap[~truth].mean()
    assert found.phrase == ANY.instruction


def test_flower_is_found_in_a_photo():
    [found] = _ground(sklearn.datasets.load_sample_image("flower.jpg"), ANY)[0]
    assert found.mask[220, 280]
    assert not found.mask[:60].any()
    assert 0.1 < found.mask.mean() < 0.4


def test_map_is_not_stretched_so_fainter_objects_score_lower():
    strong, faint = (_ground(_disc(contrast)[0], ANY)[0][0].score for contrast in (90, 45))
    assert faint < strong


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (200, 300)])
def test_flat_and_tiny_images_give_nothing(shape):
    assert _ground(np.full((*shape, 3), 128, np.uint8), ANY) == [[]]


def test_noise_and_gradient_give_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    gradient = np.repeat(np.tile(np.linspace(0, 255, 300), (200, 1))[..., None], 3, axis=2).astype(np.uint8)
    assert _ground(noise, ANY) == [[]]
    assert _ground(gradient, ANY) == [[]]


def test_whole_image_request_gets_nothing_and_others_share_one_map():
    image, _ = _disc(90)
    first, whole, second = _ground(image, ANY, Request("describe the image", []), Request("other", ["x"]))
    assert whole == []
    assert first[0].heatmap is second[0].heatmap
    assert second[0].phrase == "other"


def test_same_image_gives_the_same_map():
    image = sklearn.datasets.load_sample_image("china.jpg")
    first, second = (_ground(image, ANY)[0][0] for _ in range(2))
    np.testing.assert_array_equal(first.heatmap, second.heatmap)
    np.testing.assert_array_equal(first.mask, second.mask)
