import numpy as np
import pytest
import sklearn.datasets
import torch
from pydantic import ValidationError
from segment_anything import SamPredictor

from experts.base import Placement
from experts.sam import SegmentAnything
from experts.segmenter import load_segmenter
from pipeline.errors import InputError
from pipeline.masks import mask_iou
from tests.helpers.same_masks import assert_same_mask
from tests.tiny import sam as tiny

BOXES = np.array([[10, 10, 60, 60], [20, 5, 200, 80], [60, 40, 100, 120], [2.5, 2.5, 20, 20.7]], dtype=np.float32)
POINTS = np.array([[30, 40], [150.5, 90.25], [5, 130]], dtype=np.float32)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def segmenter(options):
    return _load(options)


@pytest.fixture(scope="module")
def images():
    flower, china = (sklearn.datasets.load_sample_image(name) for name in ("flower.jpg", "china.jpg"))
    return [flower[::3, ::3].copy(), china[100:300, 50:210].copy(), flower[150:282, 200:328].copy()]


def _load(options, **placement) -> SegmentAnything:
    return load_segmenter(SegmentAnything.Options(**options), Placement(device="cpu", **placement))


def _assert_same(masks, expected_masks, expected_scores):
    assert masks.masks.dtype == bool and masks.scores.dtype == masks.stability.dtype == np.float32
    assert len(masks.masks) == len(expected_masks) == len(masks.scores) == len(masks.stability)
    for mask, expected in zip(masks.masks, expected_masks, strict=True):
        assert_same_mask(mask, expected)
    np.testing.assert_allclose(masks.scores, np.clip(expected_scores, 0, 1), atol=1e-4)


def _assert_not_trivial(masks):
    shares = masks.masks.mean(axis=(1, 2))
    assert shares.min() > 0.02 and shares.max() < 0.98
    assert all(mask_iou(masks.masks[0], other) < 0.97 for other in masks.masks[1:])
    assert np.ptp(masks.scores) > 0.01


def test_boxes_and_points_give_what_the_librarys_predictor_gives(segmenter, images):
    predictor = SamPredictor(tiny.build())
    for image, encoded in zip(images, segmenter.encode(images), strict=True):
        predictor.set_image(image)
        boxes = torch.as_tensor(predictor.transform.apply_boxes(BOXES, image.shape[:2]), dtype=torch.float)
        masks, scores, _ = predictor.predict_torch(None, None, boxes, multimask_output=False)
        found = segmenter.segment_boxes(encoded, BOXES)
        _assert_same(found, masks[:, 0].numpy(), scores[:, 0].numpy())
        _assert_not_trivial(found)

        points = torch.as_tensor(predictor.transform.apply_coords(POINTS, image.shape[:2]), dtype=torch.float)
        masks, scores, _ = predictor.predict_torch(points[:, None], torch.ones(len(POINTS), 1), multimask_output=True)
        found = segmenter.segment_points(encoded, POINTS)
        _assert_same(found, masks.flatten(0, 1).numpy(), scores.flatten().numpy())
        _assert_not_trivial(found)


def test_architecture_is_read_off_the_checkpoint(segmenter):
    built = tiny.build()
    encoder, expected = segmenter.model.image_encoder, built.image_encoder
    assert [block.window_size for block in encoder.blocks] == [block.window_size for block in expected.blocks] == [3, 0]
    assert encoder.blocks[0].attn.num_heads == expected.blocks[0].attn.num_heads == 2
    assert encoder.img_size == expected.img_size == 128
    assert str(segmenter.model) == str(built)
    assert not segmenter.model.training


def test_published_vit_h_is_recognised_by_its_shapes():
    from segment_anything import sam_model_registry

    from experts.sam import _image_encoder, _mask_decoder, _prompt_encoder

    for name in ("vit_b", "vit_l", "vit_h"):
        with torch.device("meta"):
            published = sam_model_registry[name]()
            shapes = {key: tuple(tensor.shape) for key, tensor in published.state_dict().items()}
            encoder, prompts, decoder = _image_encoder(shapes), _prompt_encoder(shapes), _mask_decoder(shapes)
        for ours, theirs in zip(encoder.blocks, published.image_encoder.blocks, strict=True):
            assert (ours.window_size, ours.attn.num_heads) == (theirs.window_size, theirs.attn.num_heads)
        assert (str(encoder), str(prompts)) == (str(published.image_encoder), str(published.prompt_encoder))
        assert str(decoder) == str(published.mask_decoder)
        assert prompts.input_image_size == published.prompt_encoder.input_image_size == (1024, 1024)


def test_batch_gives_what_one_image_at_a_time_gives_and_encodes_each_once(options, images):
    one, many = _load(options, batch=1), _load(options, batch=4)
    sizes = []
    many.model.image_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    together = many.encode(images)
    for encoded, image in zip(together, images, strict=True):
        [alone] = one.encode([image])
        expected, found = one.segment_boxes(alone, BOXES), many.segment_boxes(encoded, BOXES)
        _assert_same(found, expected.masks, expected.scores)
        many.segment_points(encoded, POINTS)
    assert sizes == [3]


def test_prompts_beyond_one_pass_are_all_answered_in_order(options, images):
    segmenter = _load(options, batch=1)
    [encoded] = segmenter.encode(images[:1])
    boxes = np.concatenate([BOXES + shift for shift in range(0, 50, 5)]).astype(np.float32)
    found = segmenter.segment_boxes(encoded, boxes)
    assert len(found.masks) == 40
    last = segmenter.segment_boxes(encoded, boxes[-1:])
    _assert_same(last, found.masks[-1:], found.scores[-1:])


def test_stability_is_the_iou_of_masks_of_two_thresholds(segmenter, images):
    predictor = SamPredictor(tiny.build())
    predictor.set_image(images[0])
    boxes = torch.as_tensor(predictor.transform.apply_boxes(BOXES, images[0].shape[:2]), dtype=torch.float)
    logits = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)[0][:, 0].numpy()
    expected = [mask_iou(of_box > 1, of_box > -1) for of_box in logits]
    found = segmenter.segment_boxes(segmenter.encode(images[:1])[0], BOXES)
    np.testing.assert_allclose(found.stability, expected, atol=1e-3)
    assert min(expected) > 0 and max(expected) < 1


@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 2000), (1, 700)])
def test_image_of_any_shape_gets_masks_of_its_size(segmenter, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    [encoded] = segmenter.encode([image])
    found = segmenter.segment_boxes(encoded, np.array([[0, 0, shape[1], shape[0]]], dtype=np.float32))
    assert found.masks.shape == (1, *shape)
    assert np.isfinite([*found.scores, *found.stability]).all()


def test_nothing_asked_gives_no_masks(segmenter, images):
    assert segmenter.encode([]) == []
    [encoded] = segmenter.encode(images[:1])
    for found in (segmenter.segment_boxes(encoded, BOXES[:0]), segmenter.segment_points(encoded, POINTS[:0])):
        assert found.masks.shape == (0, *images[0].shape[:2])
        assert found.scores.shape == found.stability.shape == (0,)


def test_bfloat16_stays_close(options, segmenter, images):
    half = _load(options | {"dtype": "bfloat16"})
    expected = segmenter.segment_boxes(segmenter.encode(images[:1])[0], BOXES)
    found = half.segment_boxes(half.encode(images[:1])[0], BOXES)
    assert next(half.model.image_encoder.parameters()).dtype == torch.bfloat16
    assert min(mask_iou(*pair) for pair in zip(found.masks, expected.masks, strict=True)) > 0.9


def test_hub_id_and_folder_are_refused_with_the_segmenter_to_take():
    with pytest.raises(ValidationError, match=r"local \.pth file.*sam_hf"):
        SegmentAnything.Options(name="sam", checkpoint="facebook/sam-vit-base")


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pth"):
        _load({"name": "sam", "checkpoint": str(tmp_path / "gone.pth")})


def _foreign(weights):
    return {"model": weights}


def _without_decoder(weights):
    return {name: tensor for name, tensor in weights.items() if not name.startswith("mask_decoder")}


def _hq(weights):
    return weights | {"mask_decoder.hf_token.weight": torch.zeros(1, 32)}


@pytest.mark.parametrize("change", [_foreign, _without_decoder, _hq])
def test_checkpoint_of_another_model_is_named(options, tmp_path, change):
    path = tmp_path / "other.pth"
    torch.save(change(torch.load(options["checkpoint"], weights_only=True)), path)
    with pytest.raises(InputError, match=r"other\.pth is not of"):
        _load({"name": "sam", "checkpoint": str(path)})
