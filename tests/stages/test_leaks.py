"""Nothing but the mask, its image and the instruction tells the discriminator what a mask is worth."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_shard import draw_shard
from sklearn.metrics import roc_auc_score

from pipeline.images import decode_image
from pipeline.masks import decode_rle
from stages.base import group_by
from stages.discriminator import Discriminator, DiscriminatorConfig, Lesson, fit_fold, prepare, train
from stages.examples import HUMAN, OWN, Example, examples, fold_of

CONFIG = DiscriminatorConfig(folds=2, epochs=8)
SHARD = draw_shard(50)


@pytest.fixture(scope="module")
def found() -> list[Example]:
    return examples(*SHARD)


@pytest.fixture(scope="module")
def own(found: list[Example]) -> list[Example]:
    """Human and experts' masks, each with its own instruction."""
    return [one for one in found if one.kind == OWN and (one.machine or one.maker == HUMAN)]


def _disturbed(one: Example, rng: np.random.Generator) -> Example:
    figures = rng.random(one.figures.shape).astype(np.float32)
    return dataclasses.replace(one, figures=figures, iou=float(rng.random()), source="other")


def test_the_model_that_scores_an_image_has_seen_nothing_of_it(found: list[Example], tmp_path: Path) -> None:
    quick, rng = CONFIG.model_copy(update={"epochs": 1}), np.random.default_rng(0)
    other = [_disturbed(one, rng) if fold_of(one.image, quick.folds) == 0 else one for one in found]
    train(found, quick, tmp_path / "as found")
    train(other, quick, tmp_path / "disturbed")
    before, after = (Discriminator.load(tmp_path / name).nets for name in ("as found", "disturbed"))
    same = [
        all(torch.equal(value, after[fold].state_dict()[key]) for key, value in before[fold].state_dict().items())
        for fold in range(quick.folds)
    ]
    assert same == [True, False]


def _shuffled(own: list[Example], seed: int) -> tuple[list[Example], Lesson]:
    """Human or machine permuted within each image, so that not even an image's share of human masks tells anything."""
    rng = np.random.default_rng(seed)
    of_image: dict[str, list[Example]] = {}
    for one in own:
        of_image.setdefault(one.image, []).append(one)
    made = []
    for masks in of_image.values():
        for one, k in zip(masks, rng.permutation(len(masks)), strict=True):
            human = masks[k].maker == HUMAN
            made.append(dataclasses.replace(one, maker=masks[k].maker, machine=masks[k].machine, iou=float(human)))
    # The rivals stay who they were: only what is to be told is shuffled.
    return made, dataclasses.replace(prepare(own, CONFIG.folds), targets=prepare(made, CONFIG.folds).targets)


def _auc(found: list[Example], lesson: Lesson) -> float:
    d = np.zeros(len(found))
    for fold in range(CONFIG.folds):
        held = lesson.folds == fold
        d[held] = fit_fold(lesson, CONFIG, fold).predict(lesson.rows, held)[:, 0]
    return float(roc_auc_score([one.maker == HUMAN for one in found], d))


def test_labels_shuffled_within_each_image_cannot_be_told_and_true_ones_can(own: list[Example]) -> None:
    values = [_auc(*_shuffled(own, seed)) for seed in range(6)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)
    assert _auc(own, prepare(own, CONFIG.folds)) > 0.8


def test_a_model_that_trained_on_an_image_would_tell_its_shuffled_labels(own: list[Example]) -> None:
    long = CONFIG.model_copy(update={"epochs": 60})
    made, lesson = _shuffled(own, 0)
    seen = lesson.folds == 1
    d = fit_fold(lesson, long, 0).predict(lesson.rows, seen)[:, 0]
    assert roc_auc_score([one.maker == HUMAN for one, kept in zip(made, seen, strict=True) if kept], d) > 0.6


@pytest.mark.parametrize("wrong", ["a mask of ones", "an empty region", "another pair's mask"])
def test_a_wrong_mask_of_a_held_out_image_gets_clearly_lower_d_and_quality_than_the_human_one(
    folder: Path, wrong: str
) -> None:
    discriminator, gaps = Discriminator.load(folder), []
    samples, candidates, encoded = SHARD
    masks = group_by(candidates, "uuid")
    rivals = {
        image: [decode_rle(row["mask"]) for pair in pairs for row in masks[pair["uuid"]]]
        for image, pairs in group_by(samples, "image").items()
    }
    for image, pairs in group_by(samples, "image").items():
        pixels, humans = decode_image(encoded[image]), [decode_rle(pair["human_mask"]) for pair in pairs]
        for k, human in enumerate(humans):
            empty = np.zeros_like(human)
            empty[:14, 54:74] = True
            mask = {"a mask of ones": np.ones_like(human), "an empty region": empty}.get(wrong, humans[1 - k])
            text = pairs[k]["instruction"]
            right, other = discriminator.score(image, pixels, [(text, human), (text, mask)], rivals[image])
            gaps.append((right.d - other.d, right.quality - other.quality))
    assert np.mean(gaps, axis=0).min() > 0.2
    assert np.mean(np.array(gaps) > 0, axis=0).min() > 0.8


@pytest.fixture(scope="module")
def folder(found: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("discriminator")
    assert train(found, CONFIG, path) is not None
    return path
