import cv2
import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from transformers import AutoModel, BertConfig, BertModel, pipeline

from experts.base import Placement, Request, Scene
from experts.proposals import propose
from experts.region_clip import RegionClip, region_view
from experts.segmenter import Masks
from pipeline.errors import InputError
from tests.tiny.region_clip import save

FLOWER = cv2.resize(sklearn.datasets.load_sample_image("flower.jpg"), (90, 60), interpolation=cv2.INTER_AREA)
CHINA = cv2.resize(sklearn.datasets.load_sample_image("china.jpg"), (64, 100), interpolation=cv2.INTER_AREA)
PHRASES = ["a red Flower", "leaf"]
RIVALS = ["object", "things", "stuff", "texture"]


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip2"])
def options(request, tmp_path_factory):
    return _with_segmenter(save(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def clip_options(tmp_path_factory):
    return _with_segmenter(save(tmp_path_factory.mktemp("clip-only")))


def _with_segmenter(options):
    return {**options, "segmenter": {"name": "tests.helpers.box_segmenter", "checkpoint": "unused"}}


def _expert(options, batch=4, **changed):
    return RegionClip(RegionClip.Options(**options | changed), Placement(device="cpu", batch=batch))


def _regions(expert, image):
    encoded = expert.segmenter.encode([image])[0]
    return list(propose(expert.segmenter, encoded, expert.options.proposals).masks)


def _by_mask(candidates, phrase):
    return {c.mask.tobytes(): c.score for c in candidates if c.phrase == phrase}


def test_scores_are_those_of_the_librarys_zero_shot_pipeline(options):
    expert = _expert(options)
    found = expert.ground(FLOWER, [Request("…", PHRASES)])[0]
    model = AutoModel.from_pretrained(options["checkpoint"])
    judge = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=expert.tokenizer,
        image_processor=expert.image_processor,
    )

    def library(view, labels):
        answers = judge(view, candidate_labels=labels, hypothesis_template="a photo of {}")
        return {answer["label"]: answer["score"] for answer in answers}

    grey = [round(255 * mean) for mean in expert.image_processor.image_mean]
    differences, scores = [], []
    for mask in _regions(expert, FLOWER):
        view = Image.fromarray(region_view(FLOWER, mask, grey))
        for phrase in PHRASES:
            label = phrase.lower()
            if model.config.model_type == "clip":
                expected = min(library(view, [label, rival])[label] for rival in RIVALS)
            else:
                expected = library(view, [label])[label]
            scores.append(expected)
            differences.append(abs(_by_mask(found, phrase)[mask.tobytes()] - expected))
    assert len(scores) == 24 and max(scores) - min(scores) > 0.1
    assert max(differences) < 1e-5


def test_batches_of_images_of_several_sizes_give_what_one_at_a_time_gives(options):
    scenes = [
        Scene(FLOWER, [Request("one", PHRASES), Request("two", ["leaf", "sky"])]),
        Scene(CHINA, [Request("whole", [])]),
        Scene(CHINA, [Request("three", ["roof"])]),
    ]
    together = _expert(options, batch=5).ground_batch(scenes)
    apart = [_expert(options, batch=1).ground(scene.image, scene.requests) for scene in scenes]
    assert [[len(found) for found in answers] for answers in together] == [[24, 24], [0], [12]]
    for ours, theirs in zip(together, apart, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert [c.score for c in one] == sorted((c.score for c in one), reverse=True)
            for phrase in {c.phrase for c in one}:
                assert _by_mask(one, phrase) == pytest.approx(_by_mask(other, phrase), abs=1e-5)


def test_image_region_and_phrase_are_encoded_once_each(clip_options, monkeypatch):
    expert = _expert(clip_options)
    seen = {"images": 0, "regions": 0, "texts": 0}

    def count(what):
        def hook(_, __, output):
            seen[what] += len(output.pooler_output)

        return hook

    expert.model.vision_model.register_forward_hook(count("regions"))
    expert.model.text_model.register_forward_hook(count("texts"))
    encode = expert.segmenter.encode

    def counting(images):
        seen["images"] += len(images)
        return encode(images)

    monkeypatch.setattr(expert.segmenter, "encode", counting)
    requests = [Request(f"request {k}", ["leaf", f"thing {k}"]) for k in range(5)]
    expert.ground_batch([Scene(FLOWER, requests), Scene(CHINA, requests)])
    assert seen == {"images": 2, "regions": 24, "texts": 6 + len(RIVALS)}


def test_score_does_not_depend_on_other_regions_and_phrases(options, monkeypatch):
    expert = _expert(options)
    among_all = _by_mask(expert.ground(FLOWER, [Request("…", [*PHRASES, "sky"])])[0], "leaf")
    regions = _regions(expert, FLOWER)
    for mask in regions:
        only_one = Masks(mask[None], np.ones(1, np.float32), np.ones(1, np.float32))
        monkeypatch.setattr("experts.region_scoring.propose", lambda *_, only_one=only_one: only_one)
        [alone] = expert.ground(FLOWER, [Request("…", ["leaf"])])[0]
        assert alone.score == pytest.approx(among_all[mask.tobytes()], abs=1e-5)


def test_what_is_not_there_scores_low_and_a_generic_phrase_one_half(clip_options, monkeypatch):
    expert = _expert(clip_options)
    expert.model.logit_scale.data.fill_(np.log(100.0))
    # Cosines as CLIP gives them: 0.30 for what the regions show, 0.22 for a generic word, 0.16 for what is absent.
    cosines = {"flower": [0.30, 0], "car": [0.16, 0.2], "object": [0.22, 0.1], "things": [0.2, 0]}
    texts = {text: torch.tensor([x, y, (1 - x**2 - y**2) ** 0.5]) for text, (x, y) in cosines.items()}
    monkeypatch.setattr(expert, "_encode_texts", lambda batch: [texts.get(text, texts["things"]) for text in batch])
    monkeypatch.setattr(expert, "encode_regions", lambda batch: torch.eye(3)[[0] * len(batch)])
    found = expert.ground(FLOWER, [Request("…", ["flower", "car", "object"])])[0]
    for phrase, logit in {"flower": 8, "car": -6, "object": 0}.items():
        scores = [c.score for c in found if c.phrase == phrase]
        assert scores == pytest.approx([1 / (1 + np.exp(-logit))] * 12, abs=1e-5)


def test_first_candidate_of_a_phrase_carries_the_soft_map_of_all_regions(options):
    everything = _expert(options).ground(FLOWER, [Request("…", PHRASES)])[0]
    found = _expert(options, top=2, threshold=0.05).ground(FLOWER, [Request("…", PHRASES)])[0]
    for phrase in PHRASES:
        expected = np.zeros(FLOWER.shape[:2])
        for candidate in (c for c in everything if c.phrase == phrase):
            expected = np.maximum(expected, candidate.mask * candidate.score)
        first, second = [c for c in found if c.phrase == phrase]
        assert len(np.unique(expected)) > 4
        assert first.heatmap.dtype == np.float32 and second.heatmap is None
        np.testing.assert_allclose(first.heatmap, expected, atol=1e-5)


def test_only_the_best_over_the_threshold_are_kept(options):
    scores = [c.score for c in _expert(options).ground(FLOWER, [Request("…", ["leaf"])])[0]]
    kept = _expert(options, threshold=scores[4], top=3).ground(FLOWER, [Request("…", ["leaf"])])[0]
    assert [c.score for c in kept] == pytest.approx(scores[:3], abs=1e-6)
    assert len(_expert(options, threshold=scores[4]).ground(FLOWER, [Request("…", ["leaf"])])[0]) == 5
    assert _expert(options, threshold=1.0).ground(FLOWER, [Request("…", ["leaf"])]) == [[]]


def test_region_is_sharp_inside_blurred_outside_and_padded_to_a_square():
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    mask = cv2.circle(np.zeros((100, 200), np.uint8), (60, 50), 20, 1, cv2.FILLED) > 0
    mask[30:71, 60:110] = True
    view = region_view(noise, mask, (1, 2, 3))
    # The box is 40..109 by 30..70, its margin 7.
    assert view.shape == (84, 84, 3)
    assert (view[:14] == (1, 2, 3)).all() and (view[-15:] == (1, 2, 3)).all()
    crop, inside = noise[23:78, 33:117], mask[23:78, 33:117]
    np.testing.assert_array_equal(view[14:69][inside], crop[inside])
    assert view[14:69][~inside].std() < 0.3 * crop[~inside].std()


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 2000), (3, 3), (3000, 2000)])
def test_region_of_any_shape_can_be_shown(shape):
    view = region_view(np.full((*shape, 3), 9, np.uint8), np.ones(shape, bool), (0, 0, 0))
    assert view.shape == (min(max(shape), 448),) * 2 + (3,)
    assert (view == 9).all(axis=2).any()


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 3)])
def test_tiny_and_thin_images_do_not_fail(options, shape):
    [found] = _expert(options).ground(np.full((*shape, 3), 128, np.uint8), [Request("…", ["leaf"])])
    assert all(c.mask.shape == shape and 0 <= c.score <= 1 for c in found)


def test_no_phrases_no_proposals_and_odd_phrases_do_not_fail(options):
    expert = _expert(options)
    assert expert.ground_batch([]) == []
    assert expert.ground(FLOWER, []) == []
    assert expert.ground(FLOWER, [Request("whole", [])]) == [[]]
    strict = {**options["proposals"], "pred_iou_threshold": 1.0}
    assert _expert(options, proposals=strict).ground(FLOWER, [Request("…", ["leaf"])]) == [[]]
    many = [f"thing number {k}" for k in range(38)] + ["длинная фраза 花 🌸", "very " * 500 + "long"]
    [found] = _expert(options, top=1).ground(FLOWER, [Request("…", many)])
    assert [c.phrase for c in sorted(found, key=lambda c: many.index(c.phrase))] == many


def test_bfloat16_gives_nearly_the_same_scores(clip_options):
    exact, rough = (
        _by_mask(_expert(clip_options, dtype=dtype).ground(FLOWER, [Request("…", ["leaf"])])[0], "leaf")
        for dtype in ("float32", "bfloat16")
    )
    assert rough == pytest.approx(exact, abs=0.03) and rough != exact


def test_checkpoint_that_is_missing_corrupt_or_of_another_model_is_named(clip_options, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        _expert(clip_options, checkpoint=str(tmp_path / "nowhere"))
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"bert is of a bert model; give one of clip, siglip"):
        _expert(clip_options, checkpoint=str(tmp_path / "bert"))
    cut = tmp_path / "cut"
    save(cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="cut"):
        _expert(clip_options, checkpoint=str(cut))
