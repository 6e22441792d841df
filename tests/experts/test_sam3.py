import shutil

import numpy as np
import pytest
import sklearn.datasets
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Model, Sam3Processor

from experts.base import Placement, Request, Scene
from experts.sam3 import Sam3
from pipeline.errors import InputError
from tests.helpers.same_masks import assert_same_mask
from tests.tiny.sam3 import save

PHOTO = sklearn.datasets.load_sample_image("china.jpg").copy()
IMAGES = [PHOTO[:160:2, :240:2], PHOTO[100:300:2, 300:400:2], PHOTO[200:264, 100:164]]
PHRASES = ["temple", "a tree", "the grey sky"]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return save(tmp_path_factory.mktemp("sam3"))


@pytest.fixture(scope="module")
def expert(options):
    return Sam3(Sam3.Options(**options), Placement(batch=4))


@pytest.fixture(scope="module")
def library(options):
    model = Sam3Model.from_pretrained(options["checkpoint"])
    return model.eval(), Sam3Processor.from_pretrained(options["checkpoint"])


def _reference(library, image, phrase, **thresholds):
    """As the library documents it, best first: scores, boxes, masks."""
    model, processor = library
    inputs = processor(images=image, text=phrase, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    [found] = processor.post_process_instance_segmentation(outputs, target_sizes=[image.shape[:2]], **thresholds)
    order = found["scores"].argsort(descending=True)
    return [found[name][order].numpy() for name in ("scores", "boxes", "masks")]


def _ask(*phrases):
    return [Request("find it", list(phrases))]


def _assert_same(candidates, scores, boxes, masks, image):
    height, width = image.shape[:2]
    np.testing.assert_allclose([c.score for c in candidates], scores, atol=1e-5)
    np.testing.assert_allclose([c.box for c in candidates], np.clip(boxes, 0, [width, height] * 2), atol=1e-2)
    for candidate, mask in zip(candidates, masks, strict=True):
        assert_same_mask(candidate.mask, mask > 0)


@pytest.mark.parametrize(("threshold", "mask_threshold"), [(0.1, 0.5), (0.2, 0.55)])
def test_instances_are_those_of_the_librarys_documented_call(options, library, threshold, mask_threshold):
    thresholds = {"threshold": threshold, "mask_threshold": mask_threshold}
    expert = Sam3(Sam3.Options(**options | thresholds, top=50), Placement(batch=4))
    found = expert.ground_batch([Scene(image, [Request("", [phrase]) for phrase in PHRASES]) for image in IMAGES])
    best = []
    for image, requests in zip(IMAGES, found, strict=True):
        for phrase, candidates in zip(PHRASES, requests, strict=True):
            scores, boxes, masks = _reference(library, image, phrase, **thresholds)
            assert len(candidates) == len(scores) > 1
            _assert_same(candidates, scores, boxes, masks, image)
            assert {c.phrase for c in candidates} == {phrase}
            assert all(0.01 < mask.mean() < 0.99 for mask in masks)
            best.append(candidates[0])
    assert len({round(c.score, 3) for c in best}) == len({c.mask.tobytes() for c in best}) == 9


def test_only_the_best_are_kept(options, expert, library):
    [found] = Sam3(Sam3.Options(**options, top=3)).ground(IMAGES[0], _ask("temple"))
    scores, boxes, masks = _reference(library, IMAGES[0], "temple", threshold=0.1)
    assert len(scores) > 3
    _assert_same(found, scores[:3], boxes[:3], masks[:3], IMAGES[0])


def test_nothing_over_the_threshold_is_nothing(options):
    expert = Sam3(Sam3.Options(**options | {"threshold": 0.99}))
    assert expert.ground(IMAGES[0], _ask(*PHRASES)) == [[]]


def test_batched_is_as_one_at_a_time(options, expert):
    alone = Sam3(Sam3.Options(**options), Placement(batch=1))
    scenes = [Scene(image, [Request("x", PHRASES), *_ask("dog")]) for image in IMAGES]
    for scene, together in zip(scenes, expert.ground_batch(scenes), strict=True):
        for one, other in zip(alone.ground(scene.image, scene.requests), together, strict=True):
            assert [c.phrase for c in one] == [c.phrase for c in other]
            _assert_same(one, *zip(*((c.score, c.box, c.mask) for c in other), strict=True), scene.image)


def test_each_image_and_each_phrase_is_encoded_once(expert):
    rows = {"images": 0, "phrases": 0}

    def count(name):
        return lambda module, args, kwargs, output: rows.update({name: rows[name] + len(output.last_hidden_state)})

    hooks = [
        expert.model.vision_encoder.register_forward_hook(count("images"), with_kwargs=True),
        expert.model.text_encoder.register_forward_hook(count("phrases"), with_kwargs=True),
    ]
    requests = [Request("a", PHRASES), Request("b", PHRASES[:2]), Request("c", [])]
    found = expert.ground_batch([Scene(image, requests) for image in IMAGES] + [Scene(PHOTO, [Request("c", [])])])
    for hook in hooks:
        hook.remove()
    assert rows == {"images": len(IMAGES), "phrases": len(PHRASES)}
    assert [len({c.phrase for c in candidates}) for candidates in found[0]] == [3, 2, 0] and found[3] == [[]]


def test_too_long_phrase_is_cut_to_what_the_model_takes(expert, library):
    # A letter is a token here; start and end token are two of 32.
    fits = " ".join("abc" * 10)
    [found] = expert.ground(IMAGES[0], _ask(fits + " d" * 300))
    scores, boxes, masks = (values[:10] for values in _reference(library, IMAGES[0], fits, threshold=0.1))
    _assert_same(found, scores, boxes, masks, IMAGES[0])


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 500)])
def test_odd_images_and_phrases(expert, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    [found] = expert.ground(image, _ask("", "  ", "café 猫 🐈", "<|endoftext|>"))
    assert found and all(c.mask.shape == shape and c.mask.dtype == bool and 0 <= c.score <= 1 for c in found)
    boxes = np.array([c.box for c in found])
    assert (boxes >= 0).all() and (boxes <= [shape[1], shape[0]] * 2).all()


def test_many_phrases_and_none(expert):
    [found, nothing] = expert.ground(IMAGES[2], [*_ask(*(f"thing {k}" for k in range(40))), Request("x", [])])
    assert len({c.phrase for c in found}) == 40 and nothing == []
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_half_precision_is_near(options, expert):
    half = Sam3(Sam3.Options(**options | {"dtype": "bfloat16"}))
    [rough], [exact] = (one.ground(IMAGES[0], _ask("temple")) for one in (half, expert))
    assert rough[0].score == pytest.approx(exact[0].score, abs=0.05)


def test_missing_truncated_and_foreign_weights_are_told(options, tmp_path):
    shutil.copytree(options["checkpoint"], tmp_path / "truncated")
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    foreign = shutil.copytree(options["checkpoint"], tmp_path / "foreign")
    loaded = load_file(foreign / "model.safetensors")
    assert any(name.startswith("detector_model.") for name in loaded), "as published"
    save_file(
        {f"other.{name}": tensor for name, tensor in loaded.items()}, foreign / "model.safetensors", {"format": "pt"}
    )
    for name in ("missing", "truncated", "foreign"):
        with pytest.raises(InputError, match=f"checkpoint .*{name}"):
            Sam3(Sam3.Options(checkpoint=str(tmp_path / name)))
