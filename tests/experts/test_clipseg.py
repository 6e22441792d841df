import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPSegForImageSegmentation, CLIPSegProcessor

from experts.base import Placement, Request, Scene
from experts.clipseg import CLIPSeg
from pipeline.errors import InputError
from tests.helpers.same_masks import assert_same_mask
from tests.tiny.clipseg import save

PHRASES = ["a red dog", "the cat", "zebra on a bus"]


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 3] = (255, 0, 0)
    return image


def _ask(*phrases: str) -> Request:
    return Request("show " + " and ".join(phrases), list(phrases))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("clipseg"))


@pytest.fixture(scope="module")
def expert(checkpoint):
    return CLIPSeg(CLIPSeg.Options(**checkpoint))


@pytest.mark.parametrize("shape", [(60, 90), (31, 200), (300, 40)])
def test_map_is_that_of_the_documented_library_call(checkpoint, expert, shape):
    image = _picture(*shape)
    model = CLIPSegForImageSegmentation.from_pretrained(checkpoint["checkpoint"]).eval()
    processor = CLIPSegProcessor.from_pretrained(checkpoint["checkpoint"])
    picture = Image.fromarray(image)
    inputs = processor(text=PHRASES, images=[picture] * len(PHRASES), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    expected = torch.nn.functional.interpolate(logits.sigmoid()[None], shape, mode="bilinear")[0].numpy()
    assert expected.std() > 0.2
    assert min(np.abs(expected[k] - expected[k - 1]).max() for k in range(3)) > 0.2

    found = {candidate.phrase: candidate for candidate in expert.ground(image, [_ask(*PHRASES)])[0]}
    for phrase, heatmap in zip(PHRASES, expected, strict=True):
        candidate = found[phrase]
        assert candidate.heatmap.dtype == np.float32
        np.testing.assert_allclose(candidate.heatmap, heatmap, atol=1e-4)
        assert_same_mask(candidate.mask, heatmap > 0.5)
        assert candidate.score == pytest.approx(heatmap[heatmap > 0.5].mean(), abs=1e-3)


@pytest.mark.parametrize("batch", [2, 8])
def test_batched_equals_one_at_a_time(checkpoint, expert, batch):
    scenes = [
        Scene(_picture(60, 90, 1), [_ask("a dog"), _ask("the very long red line in it", "a dog")]),
        Scene(_picture(50, 40, 2), [Request("describe it", [])]),
        Scene(_picture(120, 30, 3), [_ask("cat")]),
        Scene(_picture(33, 70, 4), [_ask(*PHRASES)]),
    ]
    together = CLIPSeg(CLIPSeg.Options(**checkpoint), Placement(batch=batch)).ground_batch(scenes)
    assert together[1] == [[]]
    for scene, answers in zip(scenes, together, strict=True):
        for one, other in zip(answers, expert.ground(scene.image, scene.requests), strict=True):
            assert {found.phrase for found in one} == {found.phrase for found in other}
            by_phrase = {found.phrase: found for found in other}
            for found in one:
                np.testing.assert_allclose(found.heatmap, by_phrase[found.phrase].heatmap, atol=1e-4)
                assert_same_mask(found.mask, by_phrase[found.phrase].mask)
                assert found.score == pytest.approx(by_phrase[found.phrase].score, abs=1e-3)


def test_each_image_and_each_phrase_is_encoded_once(expert):
    passes = {"image": 0, "text": 0, "map": 0}

    def count(of):
        def hook(module, inputs, output):
            passes[of] += len(output[0])

        return hook

    clip = expert.model.clip
    parts = {"image": clip.vision_model, "text": clip.text_model, "map": expert.model.decoder}
    hooks = [part.register_forward_hook(count(of)) for of, part in parts.items()]
    image, other = _picture(60, 90), _picture(40, 40)
    expert.ground_batch(
        [Scene(image, [_ask("a"), _ask("b", "a"), _ask("c", "d")]), Scene(other, [_ask("a", "c"), _ask("a")])]
    )
    for hook in hooks:
        hook.remove()
    assert passes == {"image": 2, "text": 4, "map": 6}


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (2000, 3)])
def test_tiny_and_thin_images_have_maps_of_their_size(expert, shape):
    for candidate in expert.ground(np.full((*shape, 3), 90, np.uint8), [_ask(*PHRASES)])[0]:
        assert candidate.mask.shape == candidate.heatmap.shape == shape


def test_any_number_and_kind_of_phrases(expert):
    image = _picture(40, 50)
    many = [f"thing number {k}" for k in range(40)]
    assert len(expert.ground(image, [_ask(*many)])[0]) == 40
    odd = ["", "   ", "ein Hündchen 🐕 и кот", "red " * 500]
    assert {found.phrase for found in expert.ground(image, [_ask(*odd)])[0]} == set(odd)
    assert expert.ground(image, []) == []
    assert expert.ground_batch([]) == []


def test_phrase_that_is_nowhere_over_the_threshold_has_no_candidate(checkpoint):
    options = CLIPSeg.Options(**checkpoint | {"threshold": 0.999})
    expert = CLIPSeg(options)
    with torch.no_grad():
        expert.model.decoder.transposed_convolution[-1].bias.sub_(1000)
    assert expert.ground(_picture(40, 50), [_ask(*PHRASES)]) == [[]]


def test_bfloat16_gives_nearly_the_same_map(checkpoint, expert):
    image, ask = _picture(60, 90), [_ask("the cat")]
    half = CLIPSeg(CLIPSeg.Options(**checkpoint, dtype="bfloat16"))
    [rough], [exact] = half.ground(image, ask)[0], expert.ground(image, ask)[0]
    assert rough.heatmap.dtype == np.float32
    assert np.abs(rough.heatmap - exact.heatmap).mean() < 0.05


def test_missing_or_foreign_checkpoint_is_an_input_error(tmp_path, checkpoint):
    with pytest.raises(InputError, match="nowhere"):
        CLIPSeg(CLIPSeg.Options(checkpoint=str(tmp_path / "nowhere")))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=size | {"vocab_size": 10}, vision_config=size | {"image_size": 32})
    CLIPModel(config).save_pretrained(tmp_path / "only_clip")
    with pytest.raises(InputError, match="only_clip"):
        CLIPSeg(CLIPSeg.Options(checkpoint=str(tmp_path / "only_clip")))
