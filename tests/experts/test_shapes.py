import cv2
import numpy as np
import pytest
import skimage.data

from experts.base import Request
from experts.shapes import Shapes, ShapesOptions
from pipeline.masks import mask_iou


def _scene() -> np.ndarray:
    image = np.full((240, 320, 3), 205, np.uint8)
    cv2.ellipse(image, (80, 80), (50, 30), 0, 0, 360, (40, 60, 180), cv2.FILLED, cv2.LINE_AA)
    cv2.circle(image, (80, 180), 30, (200, 40, 40), cv2.FILLED, cv2.LINE_AA)
    cv2.fillPoly(image, [np.array([[190, 60], [290, 70], [280, 150], [200, 140]])], (60, 120, 60), cv2.LINE_AA)
    noise = np.random.default_rng(0).integers(-6, 7, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _drawn(name: str) -> np.ndarray:
    canvas = np.zeros((240, 320), np.uint8)
    if name == "plate":
        cv2.ellipse(canvas, (80, 80), (50, 30), 0, 0, 360, 1, cv2.FILLED)
    elif name == "ball":
        cv2.circle(canvas, (80, 180), 30, 1, cv2.FILLED)
    else:
        cv2.fillPoly(canvas, [np.array([[190, 60], [290, 70], [280, 150], [200, 140]])], 1)
    return canvas > 0


def _ground(image, phrase):
    return Shapes(ShapesOptions()).ground(image, [Request(phrase, [phrase])])[0]


@pytest.mark.parametrize(
    ("phrase", "name"), [("ball", "ball"), ("blue plate", "plate"), ("book", "book"), ("boxes", "book")]
)
def test_noun_finds_the_object_of_its_shape(phrase, name):
    best = _ground(_scene(), phrase)[0]
    assert mask_iou(best.mask, _drawn(name)) > 0.9
    assert 0 < best.score <= 1


def test_ball_is_round_and_a_plate_may_be_seen_from_the_side():
    masks = [candidate.mask for candidate in _ground(_scene(), "ball")]
    assert all(mask_iou(mask, _drawn("plate")) < 0.5 for mask in masks)


def test_position_and_colour_break_ties():
    assert mask_iou(_ground(_scene(), "plate at the top")[0].mask, _drawn("plate")) > 0.9
    assert mask_iou(_ground(_scene(), "red plate")[0].mask, _drawn("ball")) > 0.9


def test_coins_are_found_in_a_photo():
    image = np.repeat(skimage.data.coins()[..., None], 3, axis=2)
    found = _ground(image, "coin")
    assert len(found) == 3
    assert all(0.004 < candidate.mask.mean() < 0.03 for candidate in found)


def test_noun_without_a_shape_gets_nothing():
    assert _ground(_scene(), "red cat next to the ball") == []


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (200, 300)])
def test_flat_and_tiny_images_give_nothing(shape):
    assert _ground(np.full((*shape, 3), 128, np.uint8), "ball") == []


def test_same_image_gives_the_same_shapes():
    first, second = (_ground(skimage.data.coffee(), "saucer") for _ in range(2))
    assert [candidate.score for candidate in first] == [candidate.score for candidate in second]
    assert all((a.mask == b.mask).all() for a, b in zip(first, second, strict=True))
