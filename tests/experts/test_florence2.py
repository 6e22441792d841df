import shutil

import cv2
import numpy as np
import pytest
import sklearn.datasets
import torch
from safetensors.torch import load_file, save_file
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from experts.base import Placement, Request, Scene
from experts.florence2 import Florence2
from pipeline.errors import InputError
from pipeline.masks import mask_iou
from tests.tiny.florence2 import IMAGE_TOKENS, POSITIONS, save

TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"

PHOTO = sklearn.datasets.load_sample_image("china.jpg").copy()
IMAGES = [PHOTO[:160:2, :240:2], PHOTO[100:300:2, 300:400:2], PHOTO[200:264, 100:164]]
PHRASES = ["the temple", "a tree, left of it", "sky"]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return save(tmp_path_factory.mktemp("florence2"))


@pytest.fixture(scope="module")
def expert(options):
    return Florence2(Florence2.Options(**options), Placement(batch=4))


@pytest.fixture(scope="module")
def library(options):
    model = Florence2ForConditionalGeneration.from_pretrained(options["checkpoint"])
    return model.eval(), Florence2Processor.from_pretrained(options["checkpoint"])


def _reference(library, image, phrase, tokens=24, beams=3):
    """As the model card has it: text, polygons filled, and the probability from the scores of generation."""
    model, processor = library
    inputs = processor(text=TASK + phrase, images=image, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(
            **inputs,
            max_new_tokens=tokens,
            num_beams=beams,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    [text] = processor.batch_decode(made.sequences, skip_special_tokens=False)
    answer = processor.post_process_generation(text, task=TASK, image_size=(image.shape[1], image.shape[0]))[TASK]
    mask = np.zeros(image.shape[:2], np.uint8)
    for polygon in (polygon for polygons in answer["polygons"] for polygon in polygons if len(polygon) >= 6):
        cv2.drawContours(mask, [np.array(polygon).reshape(-1, 1, 2)], -1, 1, cv2.FILLED)
    beam = made.get("beam_indices")
    steps = model.compute_transition_scores(made.sequences, made.logits, beam, normalize_logits=True)
    written = made.sequences[:, -steps.shape[1] :] != processor.tokenizer.pad_token_id
    return mask.astype(bool), float(steps[written].mean().exp())


def _ask(*phrases):
    return [Request("find it", list(phrases))]


def _answers(expert, text):
    """Makes the model say something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert.processor, "batch_decode", lambda ids, **_: [f"</s><s>{text}</s>"] * len(ids))
        [found] = expert.ground(np.zeros((80, 100, 3), np.uint8), _ask("cat"))
    return [candidate.mask for candidate in found]


@pytest.mark.parametrize("beams", [3, 1])
def test_mask_and_score_are_those_of_the_librarys_documented_call(options, library, beams):
    expert = Florence2(Florence2.Options(**options, beams=beams), Placement(batch=4))
    found = expert.ground_batch([Scene(image, [Request("", [phrase]) for phrase in PHRASES]) for image in IMAGES])
    masks = []
    for image, requests in zip(IMAGES, found, strict=True):
        for phrase, candidates in zip(PHRASES, requests, strict=True):
            mask, score = _reference(library, image, phrase, beams=beams)
            [candidate] = candidates
            assert mask_iou(candidate.mask, mask) == 1
            assert candidate.score == pytest.approx(score, abs=1e-5)
            assert candidate.phrase == phrase
            masks.append(mask)
    assert all(0.01 < mask.mean() < 0.8 for mask in masks)
    assert all(not np.array_equal(one, other) for one, other in zip(masks[::3], masks[1::3], strict=True))
    scores = {round(candidate.score, 5) for requests in found for [candidate] in requests}
    assert len(scores) == 9 and 0 < min(scores) < max(scores) <= 1


def test_batched_is_as_one_at_a_time(options, expert):
    alone = Florence2(Florence2.Options(**options), Placement(batch=1))
    scenes = [Scene(image, [Request("x", PHRASES), *_ask("dog")]) for image in IMAGES]
    for scene, together in zip(scenes, expert.ground_batch(scenes), strict=True):
        for one, other in zip(alone.ground(scene.image, scene.requests), together, strict=True):
            assert [c.phrase for c in one] == [c.phrase for c in other]
            for first, second in zip(one, other, strict=True):
                np.testing.assert_array_equal(first.mask, second.mask)
                assert first.score == pytest.approx(second.score, abs=1e-5)


def test_each_image_is_encoded_once_and_each_phrase_of_it_answered_once(expert):
    rows = {"images": 0, "prompts": 0}

    def count(name):
        return lambda module, args, kwargs, output: rows.update({name: rows[name] + len(output.last_hidden_state)})

    hooks = [
        expert.model.model.vision_tower.register_forward_hook(count("images"), with_kwargs=True),
        expert.model.get_encoder().register_forward_hook(count("prompts"), with_kwargs=True),
    ]
    requests = [Request("a", PHRASES), Request("b", PHRASES[:2]), Request("c", [])]
    found = expert.ground_batch([Scene(image, requests) for image in IMAGES] + [Scene(PHOTO, [Request("c", [])])])
    for hook in hooks:
        hook.remove()
    assert rows == {"images": len(IMAGES), "prompts": len(IMAGES) * len(PHRASES)}
    assert [len(candidates) for candidates in found[0]] == [3, 2, 0] and found[3] == [[]]


def test_polygons_of_an_answer_are_one_mask_in_pixels(expert):
    square = "<loc_250><loc_250><loc_749><loc_250><loc_749><loc_749><loc_250><loc_749>"
    part = "<loc_500><loc_500><loc_749><loc_500><loc_749><loc_749><loc_500><loc_749>"
    apart = "<loc_0><loc_0><loc_99><loc_0><loc_99><loc_99><loc_0><loc_99>"
    truth = np.zeros((80, 100), bool)
    truth[20:60, 25:75] = True
    [overlapping] = _answers(expert, f"{square}<sep>{part}")
    np.testing.assert_array_equal(overlapping, truth)
    truth[:8, :10] = True
    for text in (f"{square}<sep>{apart}", f"<poly>{square}</poly><poly>{apart}</poly>"):
        [united] = _answers(expert, text)
        np.testing.assert_array_equal(united, truth)


@pytest.mark.parametrize(
    "text", ["", "a temple", "<sep><sep><sep><sep>", "<loc_1>", "<loc_1><loc_2><loc_3><loc_4><loc_5>", "<poly></poly>"]
)
def test_text_without_polygons_is_no_candidate(expert, text):
    assert _answers(expert, text) == []


def test_too_long_phrase_is_cut_to_what_the_model_takes(expert, library):
    around = len("Locate ") + len(" in the image with mask") + 2
    fits = "ab" * ((POSITIONS - IMAGE_TOKENS - around) // 2)
    [candidate] = expert.ground(IMAGES[0], _ask(fits + "b" * 500))[0]
    mask, score = _reference(library, IMAGES[0], (fits + "b")[: POSITIONS - IMAGE_TOKENS - around])
    np.testing.assert_array_equal(candidate.mask, mask)
    assert candidate.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 500)])
def test_odd_images_and_phrases(expert, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    phrases = ["", "  ", "café 猫 🐈", "{input} <image> <loc_5> </s>", "<OD>"]
    [found] = expert.ground(image, _ask(*phrases))
    assert all(c.mask.shape == shape and c.mask.dtype == bool and 0 < c.score <= 1 for c in found)


def test_many_phrases_and_none(options):
    expert = Florence2(Florence2.Options(**options | {"tokens": 16, "beams": 1}), Placement(batch=16))
    [found, nothing] = expert.ground(IMAGES[2], [*_ask(*(f"thing {k}" for k in range(40))), Request("x", [])])
    assert len({c.phrase for c in found}) == len(found) > 30 and nothing == []
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_half_precision_runs(options):
    expert = Florence2(Florence2.Options(**options | {"dtype": "bfloat16", "tokens": 16}))
    [found] = expert.ground(IMAGES[0], _ask(*PHRASES))
    assert found and all(0 < c.score <= 1 for c in found)


def test_missing_truncated_and_foreign_weights_are_told(options, tmp_path):
    shutil.copytree(options["checkpoint"], tmp_path / "truncated")
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    foreign = shutil.copytree(options["checkpoint"], tmp_path / "foreign")
    loaded = load_file(foreign / "model.safetensors")
    save_file(
        {f"other.{name}": tensor for name, tensor in loaded.items()}, foreign / "model.safetensors", {"format": "pt"}
    )
    for name in ("missing", "truncated", "foreign"):
        with pytest.raises(InputError, match=f"checkpoint .*{name}"):
            Florence2(Florence2.Options(checkpoint=str(tmp_path / name)))
