import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from drawn_shard import draw_shard

from pipeline.images import decode_image
from pipeline.masks import decode_rle
from stages.discriminator import Discriminator, DiscriminatorConfig, Scored, train, weights_file
from stages.examples import HUMAN, OWN, Example, examples, fold_of

CONFIG = DiscriminatorConfig(folds=3, epochs=8)


@pytest.fixture(scope="module")
def found() -> list[Example]:
    return examples(*draw_shard(60))


@pytest.fixture(scope="module")
def folder(found: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("discriminator")
    assert train(found, CONFIG, path) is not None
    return path


def _unseen(seed: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Instruction, pixels, its human mask and the other object's."""
    samples, _, encoded = draw_shard(1, seed=seed)
    own, other = (decode_rle(sample["human_mask"]) for sample in samples)
    return samples[0]["instruction"], decode_image(encoded[samples[0]["image"]]), own, other


def test_human_and_machine_masks_of_unseen_images_are_told_apart(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["auc"] > 0.85
    assert set(metrics["by_expert"]) == {"box", "shift"}


def test_predicted_quality_ranks_machine_masks_by_true_iou(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["quality_spearman"] > 0.3
    assert metrics["d_spearman"] > 0.2
    assert metrics["quality_mae"] < 0.2


@pytest.mark.parametrize("wrong", ["whole image", "empty region", "another pair's mask"])
def test_a_wrong_mask_gets_lower_d_and_quality_than_the_human_one(folder: Path, wrong: str) -> None:
    discriminator, gaps = Discriminator.load(folder), []
    for seed in range(10, 20):
        instruction, pixels, own, other = _unseen(seed)
        region = np.zeros_like(own)
        region[:14, 54:74] = True
        mask = {"whole image": np.ones_like(own), "empty region": region, "another pair's mask": other}[wrong]
        good, bad = discriminator.score("a.png", pixels, [(instruction, own), (instruction, mask)])
        gaps.append((good.d - bad.d, good.quality - bad.quality))
    assert np.mean(gaps, axis=0).min() > 0.2


def test_d_changes_when_only_the_mask_changes(folder: Path) -> None:
    instruction, pixels, mask, _ = _unseen(2)
    asked = [(instruction, mask), (instruction, np.roll(mask, 20, axis=1))]
    first, second = Discriminator.load(folder).score("a.png", pixels, asked)
    assert first.d > second.d + 0.1


def test_d_changes_when_only_the_instruction_changes(folder: Path) -> None:
    _, pixels, mask, _ = _unseen(2)
    discriminator = Discriminator.load(folder)
    scores = discriminator.score("a.png", pixels, [(f"the {c} thing", mask) for c in ("red", "green", "blue")])
    assert len({score.d for score in scores}) == 3


def test_a_mask_of_one_pixel_and_an_instruction_that_names_nothing_are_scored(folder: Path) -> None:
    _, pixels, mask, _ = _unseen(2)
    point = np.zeros_like(mask)
    point[3, 3] = True
    for text in ("", "?", "ä ö ü", "What is happening here?", "word " * 500):
        [score] = Discriminator.load(folder).score("a.png", pixels, [(text, point)])
        assert 0 <= score.d <= 1
        assert 0 <= score.quality <= 1


def test_the_score_of_a_mask_depends_on_its_rivals_alone_and_not_on_what_else_is_scored(folder: Path) -> None:
    instruction, pixels, own, other = _unseen(4)
    discriminator = Discriminator.load(folder)
    asked = [(instruction, own), (instruction, other), ("the thing on the left", own)]
    together = discriminator.score("a.png", pixels, asked, [own, other])
    alone = [discriminator.score("a.png", pixels, [pair], [own, other])[0] for pair in asked]
    for first, second in zip(together, alone, strict=True):
        assert dataclasses.astuple(first) == pytest.approx(dataclasses.astuple(second), abs=1e-5)


def test_shuffled_labels_leave_nothing_to_learn(found: list[Example], tmp_path: Path) -> None:
    own = [one for one in found if one.kind == OWN and (one.machine or one.maker == HUMAN)]
    values = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(own))
        pairs = [(own[i], own[k]) for i, k in enumerate(order)]
        shuffled = [dataclasses.replace(one, maker=other.maker, machine=other.machine) for one, other in pairs]
        metrics = train(shuffled, DiscriminatorConfig(folds=2, epochs=3), tmp_path / str(seed))
        assert metrics is not None
        values.append(metrics["auc"])
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    found: list[Example], folder: Path, tmp_path: Path
) -> None:
    train(found, CONFIG, tmp_path / "again")
    train(found, CONFIG.model_copy(update={"seed": 1}), tmp_path / "other")
    assert Discriminator.load(tmp_path / "again").id == Discriminator.load(folder).id
    assert Discriminator.load(tmp_path / "other").id != Discriminator.load(folder).id


def test_an_interrupted_training_goes_on_after_its_finished_folds_and_ends_with_the_same_weights(
    found: list[Example], folder: Path, tmp_path: Path
) -> None:
    def die(path: Path) -> None:
        raise KeyboardInterrupt(path.name)

    with pytest.raises(KeyboardInterrupt):
        train(found, CONFIG, tmp_path, die)
    assert [path.name for path in tmp_path.iterdir()] == ["fold-0.safetensors"]
    trained: list[str] = []
    assert train(found, CONFIG, tmp_path, lambda path: trained.append(path.name)) is not None
    assert trained == ["fold-1.safetensors", "fold-2.safetensors"]
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_folds_of_other_examples_are_trained_anew(found: list[Example], folder: Path, tmp_path: Path) -> None:
    file = weights_file(tmp_path, 0)
    file.write_bytes(weights_file(folder, 0).read_bytes())
    trained: list[Path] = []
    train(found[:-1], CONFIG, tmp_path, trained.append)
    assert file in trained


@pytest.mark.parametrize("objective", ["pn", "nnpu"])
def test_other_objectives_tell_human_from_machine_masks_too(
    found: list[Example], objective: str, tmp_path: Path
) -> None:
    metrics = train(found, CONFIG.model_copy(update={"objective": objective}), tmp_path)
    assert metrics is not None
    assert metrics["auc"] > 0.75


def test_metrics_come_from_the_model_that_did_not_train_on_the_image(found: list[Example], tmp_path: Path) -> None:
    # Labels are pure noise, tied to figures that only the same image repeats: only a leak could know them.
    rng = np.random.default_rng(0)
    noise = []
    for k in range(90):
        figures = rng.normal(size=len(found[0].figures)).astype(np.float32)
        figures[:4] = 0.2, 0.2, 0.8, 0.8  # One box for all: else a mask would be its own rival, and no noise.
        maker = (HUMAN, "a")[k % 2]
        noise += [Example(f"{k}.png", "drawn", "x", maker, maker != HUMAN, OWN, figures, float(rng.random()))] * 4
    metrics = train(noise, DiscriminatorConfig(folds=2, epochs=20), tmp_path)
    assert metrics is not None
    assert 0.25 < metrics["auc"] < 0.75


def test_scores_say_the_fold_of_the_image(folder: Path) -> None:
    _, pixels, mask, _ = _unseen(0)
    discriminator = Discriminator.load(folder)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        [score] = discriminator.score(name, pixels, [("x", mask)])
        assert isinstance(score, Scored)
        assert score.fold == fold_of(name, CONFIG.folds)


@pytest.mark.parametrize("kept", [[], [HUMAN], ["box", "shift"]])
def test_without_both_sides_in_every_fold_there_is_no_discriminator(
    found: list[Example], kept: list[str], tmp_path: Path
) -> None:
    assert train([example for example in found if example.maker in kept], CONFIG, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_one_labelled_image_gives_no_discriminator(tmp_path: Path) -> None:
    assert train(examples(*draw_shard(1)), CONFIG, tmp_path) is None
