import numpy as np
import pytest
import sklearn.datasets
import torch
from pydantic import ValidationError
from segment_anything import SamAutomaticMaskGenerator

from experts.base import Placement
from experts.proposals import ProposalOptions, propose
from experts.registry import segmenter_class
from experts.segmenter import Encoded, Masks, Segmenter, SegmenterOptions, load_segmenter
from pipeline.masks import mask_iou
from tests.tiny import sam as tiny

HEIGHT, WIDTH = 96, 128


def _disc_logits(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 3, height, width) of three discs around each point and scores (n, 3); how sharp and how sure depends
    on where."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    points = points.astype(np.float64)
    distance = np.hypot(columns - points[:, 0, None, None], rows - points[:, 1, None, None])[:, None]
    radius = np.array([6, 15, 40])[:, None, None]
    wave = np.sin(points[:, None, :1] * 0.31 + points[:, None, 1:] * 0.17 + np.arange(3)[:, None])
    sharpness = 0.5 + 3 * np.abs(np.cos(points[:, 0] * 0.05))[:, None, None, None]
    return ((radius - distance) * sharpness).astype(np.float32), (0.8 + 0.19 * wave[..., 0]).astype(np.float32)


class DiscSegmenter(Segmenter):
    summary = "discs"

    def __init__(self):
        super().__init__(SegmenterOptions(name="discs", checkpoint="none.pth"), Placement(device="cpu"))
        self.asked = []

    def encode(self, images):
        return [Encoded(None, *image.shape[:2]) for image in images]

    def segment_boxes(self, encoded, boxes):
        raise AssertionError("proposals come from points")

    def segment_points(self, encoded, points):
        self.asked.append(len(points))
        logits, scores = (part.reshape(-1, *part.shape[2:]) for part in _disc_logits(points))
        stability = (logits > 1).sum((1, 2)) / np.maximum((logits > -1).sum((1, 2)), 1)
        return Masks(logits > 0, scores, stability.astype(np.float32))


def _library(model, options, image, monkeypatch=None):
    """The library's records, best first; with `monkeypatch` on discs in place of the model's masks."""
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_side=options.points_per_side,
        pred_iou_thresh=options.pred_iou_threshold,
        stability_score_thresh=options.stability_threshold,
        box_nms_thresh=options.nms_threshold,
    )
    if monkeypatch:
        scale = max(image.shape[:2]) / model.image_encoder.img_size

        def predict(points, labels, multimask_output, return_logits):
            logits, scores = _disc_logits(points[:, 0].numpy() * scale)
            return torch.from_numpy(logits), torch.from_numpy(scores), None

        monkeypatch.setattr(generator.predictor, "predict_torch", predict)
    return sorted(generator.generate(image), key=lambda record: -record["predicted_iou"])


def _assert_same(found, records):
    assert len(found.masks) == len(found.scores) == len(found.stability) == len(records)
    np.testing.assert_allclose(found.scores, [min(1, record["predicted_iou"]) for record in records], atol=1e-4)
    np.testing.assert_allclose(found.stability, [record["stability_score"] for record in records], atol=1e-3)
    for mask, record in zip(found.masks, records, strict=True):
        assert mask_iou(mask, record["segmentation"]) > 0.999


@pytest.mark.parametrize("nms", [0.3, 0.5, 0.7])
def test_discs_are_filtered_as_the_librarys_generator_does(monkeypatch, nms):
    options = ProposalOptions(points_per_side=9, nms_threshold=nms, stability_threshold=0.9)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    # An image of twice the length that the model takes, so that resizing rounds no coordinate.
    records = _library(tiny.build(64), options, image, monkeypatch)
    segmenter = DiscSegmenter()
    found = propose(segmenter, segmenter.encode([image])[0], options)
    _assert_same(found, records)
    everything = segmenter.segment_points(None, _grid(9))
    sure = everything.scores >= options.pred_iou_threshold
    stable = everything.stability >= options.stability_threshold
    assert 10 < (sure & stable).sum() < min(sure.sum(), stable.sum())
    assert 3 < len(found.masks) < (sure & stable).sum()


def _grid(per_side):
    centres = (np.arange(per_side) + 0.5) / per_side
    return np.array([(x * WIDTH, y * HEIGHT) for y in centres for x in centres], dtype=np.float32)


def test_sam_proposes_what_the_librarys_generator_does(tmp_path):
    image = sklearn.datasets.load_sample_image("flower.jpg")[::3, ::3].copy()
    options = ProposalOptions(points_per_side=5, pred_iou_threshold=0.4, stability_threshold=0.45, nms_threshold=1.0)
    segmenter = load_segmenter(_sam_options(tmp_path), Placement(device="cpu", batch=2))
    found = propose(segmenter, segmenter.encode([image])[0], options)
    _assert_same(found, _library(tiny.build(), options, image))
    assert 5 < len(found.masks) < 75
    assert np.ptp(found.scores) > 0.05


def _sam_options(folder):
    return segmenter_class("sam").Options(**tiny.save(folder))


def test_defaults_are_the_librarys():
    generator = SamAutomaticMaskGenerator(tiny.build(64))
    options = ProposalOptions()
    assert len(generator.point_grids[0]) == options.points_per_side**2
    assert generator.pred_iou_thresh == options.pred_iou_threshold
    assert generator.stability_score_thresh == options.stability_threshold
    assert generator.box_nms_thresh == options.nms_threshold


def test_points_are_segmented_few_at_a_time_in_a_large_image():
    small, large = DiscSegmenter(), _EmptySegmenter()
    propose(small, Encoded(None, HEIGHT, WIDTH), ProposalOptions(points_per_side=10))
    assert small.asked == [64, 36]
    found = propose(large, Encoded(None, 6000, 4000), ProposalOptions(points_per_side=2))
    assert large.asked == [3, 1]
    assert found.masks.shape == (0, 6000, 4000)


class _EmptySegmenter(DiscSegmenter):
    def segment_points(self, encoded, points):
        self.asked.append(len(points))
        count, ones = 3 * len(points), np.ones(3 * len(points), np.float32)
        return Masks(np.zeros((count, encoded.height, encoded.width), dtype=bool), ones, ones)


def test_image_of_one_pixel_gets_at_most_one_proposal(tmp_path):
    segmenter = load_segmenter(_sam_options(tmp_path), Placement(device="cpu"))
    [encoded] = segmenter.encode([np.full((1, 1, 3), 99, np.uint8)])
    options = ProposalOptions(points_per_side=2, pred_iou_threshold=0, stability_threshold=0)
    found = propose(segmenter, encoded, options)
    assert found.masks.shape[1:] == (1, 1) and found.masks.all()


@pytest.mark.parametrize("field", ["points_per_side", "nms_threshold"])
def test_options_outside_their_range_are_refused(field):
    with pytest.raises(ValidationError, match=field):
        ProposalOptions(**{field: -1})
