import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from drawn_shard import draw_shard

from pipeline.errors import BadImage
from pipeline.images import decode_image
from pipeline.masks import decode_rle
from stages.discriminator import (
    HUMAN,
    WRONG_TARGET,
    Discriminator,
    DiscriminatorConfig,
    Example,
    examples,
    fold_of,
    train,
    training_pairs,
)

CONFIG = DiscriminatorConfig(epochs=12)


@pytest.fixture(scope="module")
def found() -> list[Example]:
    return examples(*draw_shard(60))


@pytest.fixture(scope="module")
def folder(found: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("discriminator")
    assert train(found, CONFIG, path) is not None
    return path


def test_human_and_machine_masks_of_unseen_images_are_told_apart(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["auc"] > 0.9
    assert set(metrics["auc_by_expert"]) == {"box", "shift"}
    assert min(metrics["auc_by_expert"].values()) > 0.8


def test_predicted_quality_ranks_machine_masks_by_true_iou(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["quality_spearman"] > 0.3
    assert metrics["quality_mae"] < 0.2


def test_another_dataset_is_scored_by_models_that_never_saw_it(folder: Path) -> None:
    samples, candidates, encoded = draw_shard(6, seed=1)
    discriminator = Discriminator.load(folder)
    human, machine = [], []
    for sample in samples:
        masks = [decode_rle(row["mask"]) for row in candidates if row["uuid"] == sample["uuid"]]
        masks.append(decode_rle(sample["human_mask"]))
        pixels = decode_image(encoded[sample["image"]])
        *others, own = discriminator.score(sample["image"], pixels, sample["instruction"], masks)
        human.append(own.d)
        machine += [score.d for score in others]
    assert np.mean(human) > np.mean(machine) + 0.3


def test_d_changes_when_only_the_mask_changes(folder: Path) -> None:
    samples, _, encoded = draw_shard(1, seed=2)
    pixels, mask = decode_image(encoded[samples[0]["image"]]), decode_rle(samples[0]["human_mask"])
    moved = np.roll(mask, 9, axis=1)
    first, second = Discriminator.load(folder).score("a.png", pixels, "the red thing", [mask, moved])
    assert first.d > second.d + 0.1


def test_d_changes_when_only_the_instruction_changes(folder: Path) -> None:
    samples, _, encoded = draw_shard(1, seed=2)
    pixels, mask = decode_image(encoded[samples[0]["image"]]), decode_rle(samples[0]["human_mask"])
    discriminator = Discriminator.load(folder)
    values = {discriminator.score("a.png", pixels, f"the {c} thing", [mask])[0].d for c in ("red", "green", "blue")}
    assert len(values) == 3


def test_shuffled_labels_leave_nothing_to_learn(found: list[Example], tmp_path: Path) -> None:
    own = [example for example in found if example.expert != WRONG_TARGET]
    order = np.random.default_rng(0).permutation(len(own))
    shuffled = [dataclasses.replace(own[i], expert=own[k].expert) for i, k in enumerate(order)]
    metrics = train(shuffled, CONFIG, tmp_path)
    assert metrics is not None
    assert 0.4 < metrics["auc"] < 0.6


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    found: list[Example], folder: Path, tmp_path: Path
) -> None:
    train(found, CONFIG, tmp_path / "again")
    train(found, CONFIG.model_copy(update={"seed": 1}), tmp_path / "other")
    assert Discriminator.load(tmp_path / "again").id == Discriminator.load(folder).id
    assert Discriminator.load(tmp_path / "other").id != Discriminator.load(folder).id


def test_a_loaded_discriminator_gives_identical_scores(folder: Path) -> None:
    samples, candidates, encoded = draw_shard(1, seed=3)
    pixels, masks = decode_image(encoded[samples[0]["image"]]), [decode_rle(row["mask"]) for row in candidates]
    first, second = (Discriminator.load(folder).score("a.png", pixels, "the red thing", masks) for _ in range(2))
    assert first == second
    assert all(0 <= score.d <= 1 and 0 <= score.quality <= 1 for score in first)


def test_metrics_come_from_the_model_that_did_not_train_on_the_image(found: list[Example], tmp_path: Path) -> None:
    # Labels are pure noise, tied to figures that only the same image repeats: only a leak could know them.
    rng = np.random.default_rng(0)
    noise = []
    for k in range(60):
        figures = rng.normal(size=8).astype(np.float32)
        noise += [Example(f"{k}.png", "x", (HUMAN, "a")[k % 2], figures, float(rng.random()))] * 4
    metrics = train(noise, DiscriminatorConfig(epochs=30), tmp_path)
    assert metrics is not None
    assert 0.25 < metrics["auc"] < 0.75


def test_the_fold_of_an_image_is_stable_and_folds_are_about_equal() -> None:
    assert [fold_of(name, 3) for name in ("a.png", "b.png", "ü/c.png")] == [2, 0, 1]
    counts = np.bincount([fold_of(f"{k}.jpg", 3) for k in range(3000)])
    assert counts.min() > 900


def test_scores_say_the_fold_of_the_image(folder: Path) -> None:
    samples, _, encoded = draw_shard(1)
    pixels, mask = decode_image(encoded[samples[0]["image"]]), decode_rle(samples[0]["human_mask"])
    discriminator = Discriminator.load(folder)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        assert discriminator.score(name, pixels, "x", [mask])[0].fold == fold_of(name, CONFIG.folds)


@pytest.mark.parametrize("kept", [[], [HUMAN], ["box", "shift"]])
def test_without_both_sides_in_every_fold_there_is_no_discriminator(
    found: list[Example], kept: Sequence[str], tmp_path: Path
) -> None:
    assert train([example for example in found if example.expert in kept], CONFIG, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_one_labelled_image_gives_no_discriminator(tmp_path: Path) -> None:
    assert train(examples(*draw_shard(1)), CONFIG, tmp_path) is None


def test_both_sides_of_the_examples_are_of_the_same_pairs(found: list[Example]) -> None:
    def pairs(expert: str) -> set[tuple[str, str]]:
        return {(example.image, example.instruction) for example in found if example.expert == expert}

    assert pairs(HUMAN) == pairs("box") == pairs("shift")
    assert all(example.iou == 1 for example in found if example.expert == HUMAN)
    assert all(example.iou < 0.5 for example in found if example.expert == WRONG_TARGET)


def test_pairs_without_candidates_and_broken_images_give_no_examples() -> None:
    samples, candidates, encoded = draw_shard(3)
    encoded[samples[0]["image"]] = b"broken"
    kept = [row for row in candidates if row["uuid"] != samples[2]["uuid"]]
    found = examples(samples, kept, encoded)
    with pytest.raises(BadImage):
        decode_image(encoded[samples[0]["image"]])
    assert {(example.image, example.instruction) for example in found if example.expert == HUMAN} == {
        (row["image"], row["instruction"]) for row in samples[3:]
    }


def test_training_pairs_are_capped_the_same_in_any_order() -> None:
    uuids = [f"{k * 7919 % 101:03d}" for k in range(100)]
    config = DiscriminatorConfig(max_pairs=10)
    assert len(training_pairs(uuids, config)) == 10
    assert training_pairs(uuids, config) == training_pairs(reversed(uuids), config)
    assert training_pairs(uuids[:5], config) == set(uuids[:5])
