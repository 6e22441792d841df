from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from experts.base import Candidate, Placement, Request, Scene
from experts.owlv2 import Owlv2
from pipeline.errors import InputError
from tests.helpers.detection_library import library_boxes
from tests.tiny import grounding_dino
from tests.tiny.owlv2 import save

SEGMENTER = {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}
RNG = np.random.default_rng(0)
WIDE, TALL, LARGE = (RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((90, 130), (200, 100), (180, 260)))
ASK = Request("where do the cats sit?", ["A cat", "big red bus", "x"])


@pytest.fixture(scope="module", params=["owlv2", "owlvit"])
def saved(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def expert(saved):
    """Keeps every box, for comparison."""
    return _expert(saved, threshold=0, nms=1)


def _expert(saved: dict, batch: int = 4, **options) -> Owlv2:
    chosen = Owlv2.Options.model_validate(saved | {"segmenter": SEGMENTER} | options)
    return Owlv2(chosen, Placement(device="cpu", batch=batch))


def _of(phrase: str, candidates: list[Candidate]) -> tuple[torch.Tensor, torch.Tensor]:
    found = [candidate for candidate in candidates if candidate.phrase == phrase]
    return torch.tensor([c.box for c in found]).reshape(-1, 4), torch.tensor([c.score for c in found])


def _assert_same(some: list[list[Candidate]], others: list[list[Candidate]]) -> None:
    for one, other in zip(some, others, strict=True):
        assert [candidate.phrase for candidate in one] == [candidate.phrase for candidate in other]
        torch.testing.assert_close([c.score for c in one], [c.score for c in other], atol=1e-5, rtol=0)
        torch.testing.assert_close([c.box for c in one], [c.box for c in other], atol=1e-2, rtol=0)


@pytest.mark.parametrize("image", [WIDE, TALL], ids=["wide", "tall"])
def test_boxes_and_scores_are_the_librarys(saved, expert, image):
    [candidates] = expert.ground(image, [ASK])
    of_each = []
    for phrase in ASK.phrases:
        boxes, scores = _of(phrase, candidates)
        expected_boxes, expected_scores = library_boxes(saved["checkpoint"], image, text=[[phrase]], truncation=True)
        torch.testing.assert_close(boxes, expected_boxes, atol=1e-2, rtol=0)
        torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)
        of_each.append(expected_scores)
        # The comparison means something: boxes of some size, scores that differ, with the phrase too.
        assert len(boxes) > 10 and (boxes[:, 2:] - boxes[:, :2]).mean() > 5
        assert scores.max() - scores.min() > 0.1
    assert (of_each[0] - of_each[1]).abs().max() > 0.01


def test_a_phrase_too_long_for_the_model_is_cut(saved, expert):
    long = "cat on the mat " * 30
    _, scores = _of(long, expert.ground(WIDE, [Request("i", [long])])[0])
    _, expected = library_boxes(saved["checkpoint"], WIDE, text=[[long]], truncation=True)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_of_overlapping_boxes_the_best_is_kept(saved, expert):
    request = Request("i", ["a cat"])
    every, _ = _of("a cat", expert.ground(LARGE, [request])[0])
    kept, scores = _of("a cat", _expert(saved, threshold=0, nms=0.3).ground(LARGE, [request])[0])
    assert 1 < len(kept) < len(every)
    assert torch.equal(kept[0], every[0]) and torch.equal(scores, scores.sort(descending=True).values)
    assert all(box_iou(one[None], other[None]) <= 0.3 for one, other in combinations(kept, 2))


def test_images_of_several_sizes_together_are_as_each_alone(expert):
    scenes = [Scene(WIDE, [ASK]), Scene(TALL, [Request("i", ["x"])]), Scene(LARGE, [ASK])]
    together = expert.ground_batch(scenes)
    assert all(len(found) > 10 for [found] in together)
    for scene, found in zip(scenes, together, strict=True):
        _assert_same(found, expert.ground(scene.image, scene.requests))


def test_images_and_phrases_are_encoded_once(expert):
    images: list[int] = []
    texts: list[int] = []
    towers = expert.model.base_model
    hooks = [
        towers.vision_model.register_forward_hook(
            lambda _, __, given, ___: images.append(len(given["pixel_values"])), with_kwargs=True
        ),
        towers.text_model.register_forward_hook(
            lambda _, __, given, ___: texts.append(len(given["input_ids"])), with_kwargs=True
        ),
    ]
    scenes = [Scene(image, [ASK, Request("j", ["a dog", "x"])]) for image in (WIDE, TALL, LARGE)]
    expert.ground_batch(scenes)
    for hook in hooks:
        hook.remove()
    assert images == [3]
    assert texts == [4]


@pytest.mark.parametrize("shape", [(1, 1), (300, 2), (2, 300), (3, 3)])
def test_images_of_any_shape_are_searched(expert, shape):
    height, width = shape
    [candidates] = expert.ground(np.full((*shape, 3), 128, np.uint8), [ASK])
    assert candidates
    for candidate in candidates:
        x1, y1, x2, y2 = candidate.box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert candidate.mask.shape == shape


def test_any_phrases_can_be_asked(expert):
    many = [f"thing {k}" for k in range(40)]
    odd = ["ぶどう 🍇", "...", ""]
    of_many, of_none, of_odd = expert.ground(WIDE, [Request("many", many), Request("none", []), Request("odd", odd)])
    assert {candidate.phrase for candidate in of_many} == set(many)
    assert of_none == []
    assert {candidate.phrase for candidate in of_odd} == set(odd)


def test_where_nothing_scores_enough_there_is_nothing(saved):
    assert _expert(saved, threshold=1).ground(WIDE, [ASK]) == [[]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_finds_much_the_same(saved, expert, dtype):
    [candidates] = _expert(saved, threshold=0, nms=1, dtype=dtype).ground(WIDE, [ASK])
    exact, _ = _of("x", expert.ground(WIDE, [ASK])[0])
    boxes, _ = _of("x", candidates)
    assert box_iou(boxes, exact).max(dim=1).values.min() > 0.9


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        _expert({"checkpoint": str(tmp_path / "nowhere")})


def test_truncated_weights_are_an_input_error(tmp_path):
    broken = save(tmp_path)
    weights = Path(broken["checkpoint"]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=str(tmp_path)):
        _expert(broken)


def test_checkpoint_of_another_detector_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        _expert(grounding_dino.save(tmp_path))
