import json

import numpy as np
import pytest
import sklearn.datasets
import torch
from transformers import Sam2Model, Sam2Processor, SamHQModel, SamHQProcessor, SamModel, SamProcessor

from experts.base import Placement
from experts.sam_hf import SamHf
from experts.segmenter import load_segmenter
from pipeline.errors import InputError
from pipeline.masks import mask_iou
from tests.helpers.same_masks import assert_same_mask
from tests.tiny import sam as tiny_pth
from tests.tiny import sam_hf as tiny

BOXES = np.array([[10, 10, 60, 60], [20, 5, 110, 80], [60, 40, 100, 120], [2.5, 2.5, 20, 20.7]], dtype=np.float32)
POINTS = np.array([[30, 40], [120.5, 90.25], [5, 130]], dtype=np.float32)
LIBRARY = {"sam": (SamModel, SamProcessor), "sam_hq": (SamHQModel, SamHQProcessor), "sam2": (Sam2Model, Sam2Processor)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {family: tiny.save(tmp_path_factory.mktemp(family), family) for family in LIBRARY}


@pytest.fixture(scope="module")
def segmenters(checkpoints):
    return {family: _load(options) for family, options in checkpoints.items()}


@pytest.fixture(scope="module")
def images():
    flower, china = (sklearn.datasets.load_sample_image(name) for name in ("flower.jpg", "china.jpg"))
    return [flower[::3, ::3].copy(), china[100:300, 50:210].copy(), flower[150:282, 200:328].copy()]


def _load(options, **placement) -> SamHf:
    return load_segmenter(SamHf.Options(**options), Placement(device="cpu", **placement))


class _Library:
    """The documented call: processor, model, `post_process_masks`."""

    def __init__(self, family, checkpoint):
        model_class, processor_class = LIBRARY[family]
        self.model, self.processor = (
            model_class.from_pretrained(checkpoint).eval(),
            processor_class.from_pretrained(checkpoint),
        )

    def inputs(self, image, prompts):
        if prompts.shape[1] == 4:
            return self.processor(images=image, input_boxes=[prompts.tolist()], return_tensors="pt")
        points = [[[point] for point in prompts.tolist()]]
        labels = [[[1] for _ in prompts]]
        return self.processor(images=image, input_points=points, input_labels=labels, return_tensors="pt")

    def masks(self, logits, inputs):
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        [masks] = self.processor.post_process_masks(logits, *sizes)
        return masks.flatten(0, 1).numpy()

    @torch.no_grad()
    def __call__(self, image, prompts):
        inputs = self.inputs(image, prompts)
        given = {name: value for name, value in inputs.items() if "sizes" not in name}
        given = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
        answer = self.model(**given, multimask_output=prompts.shape[1] == 2)
        return self.masks(answer.pred_masks, inputs), answer.iou_scores.flatten().numpy()


def _assert_same(masks, expected_masks, expected_scores):
    assert masks.masks.dtype == bool and masks.scores.dtype == masks.stability.dtype == np.float32
    assert len(masks.masks) == len(expected_masks) == len(masks.scores) == len(masks.stability)
    for mask, expected in zip(masks.masks, expected_masks, strict=True):
        assert_same_mask(mask, expected)
    np.testing.assert_allclose(masks.scores, np.clip(expected_scores, 0, 1), atol=1e-4)


def _assert_not_trivial(masks):
    shares = masks.masks.mean(axis=(1, 2))
    assert ((shares > 0.02) & (shares < 0.98)).mean() > 0.7
    assert all(mask_iou(masks.masks[0], other) < 0.97 for other in masks.masks[1:])
    assert np.ptp(masks.scores) > 0.01


@pytest.mark.parametrize("family", ["sam", "sam2"])
def test_boxes_and_points_give_what_the_library_gives(checkpoints, segmenters, images, family):
    library, segmenter = _Library(family, checkpoints[family]["checkpoint"]), segmenters[family]
    for image, encoded in zip(images, segmenter.encode(images), strict=True):
        for prompts, segment in ((BOXES, segmenter.segment_boxes), (POINTS, segmenter.segment_points)):
            found = segment(encoded, prompts)
            _assert_same(found, *library(image, prompts))
            _assert_not_trivial(found)


@torch.no_grad()
def _authors_hq(library, image, prompts):
    """SAM-HQ's decoder as its authors define it, on the library's layers: the image tokens that leave the two-way
    transformer are upscaled, the HQ token's mask is added to SAM's."""
    inputs, model = library.inputs(image, prompts), library.model
    encoded, decoder, act = model.vision_encoder(inputs["pixel_values"]), model.mask_decoder, torch.nn.functional.gelu
    embedding, early = encoded.last_hidden_state, encoded.intermediate_embeddings[0].permute(0, 3, 1, 2)
    points, boxes = inputs.get("input_points"), inputs.get("input_boxes")
    sparse, dense = model.prompt_encoder(
        None if points is None else points.float(),
        inputs.get("input_labels"),
        None if boxes is None else boxes.float(),
        None,
    )
    n, (_, channels, side, _) = len(prompts), embedding.shape
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])
    tokens, keys = decoder.transformer(
        point_embeddings=torch.cat([outputs.expand(1, n, -1, -1), sparse], dim=2),
        image_embeddings=(embedding + dense).repeat(n, 1, 1, 1),
        image_positional_embeddings=model.get_image_wide_positional_embeddings().repeat(n, 1, 1, 1),
        attention_similarity=None,
    )
    source = torch.stack([of_prompt.T.reshape(channels, side, side) for of_prompt in keys[:, 0]])
    upscaled = act(decoder.upscale_conv2(act(decoder.upscale_layer_norm(decoder.upscale_conv1(source)))))
    detail = decoder.encoder_conv2(act(decoder.encoder_norm(decoder.encoder_conv1(embedding))))
    detail = detail + decoder.compress_vit_conv2(act(decoder.compress_vit_norm(decoder.compress_vit_conv1(early))))
    fine = decoder.mask_conv2(act(decoder.mask_norm(decoder.mask_conv1(upscaled)))) + detail
    scores = decoder.iou_prediction_head(tokens[0, :, 0])
    answers = []
    for k in range(n):
        hq = torch.tensordot(decoder.hq_mask_mlp(tokens[0, k, 5]), fine[k], dims=1)
        chosen = [0] if prompts.shape[1] == 4 else sorted([1, 2, 3], key=lambda j: -scores[k, j].item())
        heads = {j: decoder.output_hypernetworks_mlps[j](tokens[0, k, 1 + j]) for j in chosen}
        answers += [(torch.tensordot(heads[j], upscaled[k], dims=1) + hq, scores[k, j].item()) for j in chosen]
    logits = torch.stack([logit for logit, _ in answers])
    return library.masks(logits[None, :, None], inputs), np.array([score for _, score in answers])


def test_sam_hq_gives_what_its_authors_decoder_gives(checkpoints, segmenters, images):
    library, segmenter = _Library("sam_hq", checkpoints["sam_hq"]["checkpoint"]), segmenters["sam_hq"]
    for image, encoded in zip(images, segmenter.encode(images), strict=True):
        for prompts, segment in ((BOXES, segmenter.segment_boxes), (POINTS, segmenter.segment_points)):
            found = segment(encoded, prompts)
            _assert_same(found, *_authors_hq(library, image, prompts))
            _assert_not_trivial(found)


def test_librarys_own_sam_hq_decoder_still_drops_the_image_tokens(checkpoints, images):
    """Once this fails, `_hand_over_image_tokens` can go."""
    library = _Library("sam_hq", checkpoints["sam_hq"]["checkpoint"])
    (masks, scores), (expected, expected_scores) = (call(images[0], BOXES) for call in (library, _authors(library)))
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    assert max(mask_iou(*pair) for pair in zip(masks, expected, strict=True)) < 0.9


def _authors(library):
    return lambda image, prompts: _authors_hq(library, image, prompts)


@pytest.mark.parametrize("family", LIBRARY)
def test_batch_gives_what_one_image_at_a_time_gives_and_encodes_each_once(checkpoints, images, family):
    one, many = _load(checkpoints[family], batch=1), _load(checkpoints[family], batch=4)
    sizes = []
    many.model.vision_encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    together = many.encode(images)
    for encoded, image in zip(together, images, strict=True):
        [alone] = one.encode([image])
        expected, found = one.segment_boxes(alone, BOXES), many.segment_boxes(encoded, BOXES)
        _assert_same(found, expected.masks, expected.scores)
        many.segment_points(encoded, POINTS)
    assert sizes == [3]


def test_prompts_beyond_one_pass_are_all_answered_in_order(checkpoints, images):
    segmenter = _load(checkpoints["sam2"], batch=1)
    [encoded] = segmenter.encode(images[:1])
    boxes = np.concatenate([BOXES + shift for shift in range(0, 50, 5)]).astype(np.float32)
    found = segmenter.segment_boxes(encoded, boxes)
    assert len(found.masks) == 40
    last = segmenter.segment_boxes(encoded, boxes[-1:])
    _assert_same(last, found.masks[-1:], found.scores[-1:])


@pytest.mark.parametrize("family", LIBRARY)
@pytest.mark.parametrize("shape", [(1, 1), (2000, 3), (3, 2000), (1, 700)])
def test_image_of_any_shape_gets_masks_of_its_size(segmenters, family, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    [encoded] = segmenters[family].encode([image])
    found = segmenters[family].segment_boxes(encoded, np.array([[0, 0, shape[1], shape[0]]], dtype=np.float32))
    assert found.masks.shape == (1, *shape)
    assert np.isfinite([*found.scores, *found.stability]).all()


@pytest.mark.parametrize("family", LIBRARY)
def test_nothing_asked_gives_no_masks(segmenters, images, family):
    segmenter = segmenters[family]
    assert segmenter.encode([]) == []
    [encoded] = segmenter.encode(images[:1])
    for found in (segmenter.segment_boxes(encoded, BOXES[:0]), segmenter.segment_points(encoded, POINTS[:0])):
        assert found.masks.shape == (0, *images[0].shape[:2])
        assert found.scores.shape == found.stability.shape == (0,)


@pytest.mark.parametrize("family", LIBRARY)
def test_bfloat16_stays_close(checkpoints, segmenters, images, family):
    half, full = _load(checkpoints[family] | {"dtype": "bfloat16"}), segmenters[family]
    expected = full.segment_points(full.encode(images[:1])[0], POINTS)
    found = half.segment_points(half.encode(images[:1])[0], POINTS)
    assert next(half.model.vision_encoder.parameters()).dtype == torch.bfloat16
    assert np.mean([mask_iou(*pair) for pair in zip(found.masks, expected.masks, strict=True)]) > 0.8


def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="gone"):
        _load({"name": "sam_hf", "checkpoint": str(tmp_path / "gone")})


def test_pth_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"sam_tiny\.pth.*config\.json"):
        _load(tiny_pth.save(tmp_path) | {"name": "sam_hf"})


def test_other_model_type_is_named_with_those_it_takes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "efficient_sam"}))
    with pytest.raises(InputError, match=r"efficient_sam.* sam, sam_hq, sam2"):
        _load({"name": "sam_hf", "checkpoint": str(tmp_path)})


def test_weights_of_another_family_are_refused(tmp_path):
    options = tiny.save(tmp_path, "sam")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"model_type": "sam"', '"model_type": "sam_hq"'))
    with pytest.raises(InputError, match="SamHQModel"):
        _load(options)
