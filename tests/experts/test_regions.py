import cv2
import numpy as np
import pytest
import skimage.data

from experts.base import Request
from experts.regions import Regions, RegionsOptions
from pipeline.masks import mask_iou

BLOCKS = {"red": ((200, 30, 30), (40, 60, 140, 160)), "blue": ((30, 60, 190), (220, 80, 300, 200))}


def _scene() -> np.ndarray:
    noise = np.random.default_rng(0).integers(-10, 11, (240, 400, 3))
    image = np.full((240, 400, 3), (170, 175, 160)) + noise
    for colour, (x1, y1, x2, y2) in BLOCKS.values():
        image[y1:y2, x1:x2] = colour + noise[y1:y2, x1:x2]
    image[100:130, 340:370] = (200, 30, 30)
    return np.clip(image, 0, 255).astype(np.uint8)


def _block(name: str) -> np.ndarray:
    x1, y1, x2, y2 = BLOCKS[name][1]
    mask = np.zeros((240, 400), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def _ground(image, *phrases):
    return Regions(RegionsOptions()).ground(image, [Request(" ".join(phrases), list(phrases))])[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_colour_finds_the_region_of_that_colour(name):
    best = _ground(_scene(), f"{name} block")[0]
    assert mask_iou(best.mask, _block(name)) > 0.9
    assert best.phrase == f"{name} block" and 0 < best.score <= 1


def test_noun_without_a_colour_word_is_looked_for_in_its_usual_colour():
    image = _scene()
    image[180:220, 60:120] = (235, 205, 40)
    assert _ground(image, "banana")[0].mask[200, 90]


def test_size_and_position_words_choose_between_regions_of_one_colour():
    for phrase in ("small red block", "red block on the right", "rightmost red block"):
        assert _ground(_scene(), phrase)[0].mask[115, 355], phrase
    assert mask_iou(_ground(_scene(), "big red block")[0].mask, _block("red")) > 0.9


def test_relation_to_a_coloured_thing_chooses_between_regions_of_one_colour():
    assert _ground(_scene(), "red block to the right of the blue block")[0].mask[115, 355]
    assert mask_iou(_ground(_scene(), "red block left of the blue block")[0].mask, _block("red")) > 0.9


def test_position_alone_finds_a_region_there():
    assert mask_iou(_ground(_scene(), "leftmost block")[0].mask, _block("red")) > 0.7


def test_phrases_are_answered_separately_best_first():
    found = _ground(_scene(), "red block", "blue block")
    assert {candidate.phrase for candidate in found} == {"red block", "blue block"}
    scores = [candidate.score for candidate in found]
    assert scores == sorted(scores, reverse=True)


def test_no_candidate_without_a_word_for_colour_size_or_place():
    assert _ground(_scene(), "cup that somebody left there") == []
    assert _ground(_scene()) == []


def test_colour_that_is_not_there_is_not_found():
    assert all(candidate.score < 0.2 for candidate in _ground(_scene(), "purple block"))


def test_flat_and_tiny_images_give_nothing():
    for shape in ((1, 1), (2, 500), (200, 300)):
        assert _ground(np.full((*shape, 3), 200, np.uint8), "white cup", "cup on the left") == []


def test_same_image_and_request_give_the_same_masks():
    first, second = (_ground(skimage.data.coffee(), "red saucer", "cup on the left") for _ in range(2))
    assert [candidate.score for candidate in first] == [candidate.score for candidate in second]
    assert all((a.mask == b.mask).all() for a, b in zip(first, second, strict=True))


def test_candidates_are_limited_by_the_option():
    request = [Request("q", ["red cup", "thing on the left"])]
    found = Regions(RegionsOptions(candidates=1)).ground(skimage.data.coffee(), request)[0]
    assert len(found) <= 2


def test_masks_have_the_size_of_the_image():
    image = cv2.resize(_scene(), (1201, 719))
    assert _ground(image, "blue block")[0].mask.shape == (719, 1201)
