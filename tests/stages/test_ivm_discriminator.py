import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_masks import draw
from sklearn.metrics import roc_auc_score

from pipeline.errors import InputError
from pipeline.masks import encode_rle
from stages.discriminator import Scored, weights_file
from stages.examples import fold_of
from stages.ivm_config import IvmConfig
from stages.ivm_discriminator import IvmDiscriminator, train_ivm
from stages.ivm_encoders import Encoders
from stages.ivm_training import Bank, Progress, fit
from stages.objectives import HUMAN_SIDE, MACHINE_SIDE
from tests.tiny import ivm, llava, region_clip

torch.set_num_threads(1)

EXAMPLES, PIXELS = draw(4)
"""Sixteen examples; of two folds, image 0 is alone in the second."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> IvmConfig:
    folders = {
        "sam": {"checkpoint": ivm.save_sam(tmp_path_factory.mktemp("sam"))},
        "condition": {"checkpoint": region_clip.save(tmp_path_factory.mktemp("clip"))["checkpoint"]},
    }
    fields = {"device": "cpu", "batch": 8, "learning_rate": 2e-3, "folds": 2, "epochs": 3, "save_every": 2}
    return IvmConfig.model_validate(folders | fields).pinned()


@pytest.fixture(scope="module")
def trained(config: IvmConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("discriminator")
    scores = train_ivm(EXAMPLES, PIXELS.__getitem__, config, folder)
    assert scores is not None
    return folder, scores


def _die_after(files: int) -> Callable[[Path], None]:
    kept: list[Path] = []

    def saved(path: Path) -> None:
        kept.append(path)
        if len(kept) == files:
            raise KeyboardInterrupt(path.name)

    return saved


def _bank(config: IvmConfig, folder: Path) -> Bank:
    folder.mkdir()
    return Bank(Encoders(config), EXAMPLES, PIXELS.__getitem__, folder)


@pytest.mark.slow
def test_sixteen_examples_are_learned_by_heart(config: IvmConfig, tmp_path: Path) -> None:
    bank = _bank(config.model_copy(update={"epochs": 150, "batch": 16, "save_every": 1000}), tmp_path / "bank")
    rows = np.arange(16)
    scores = bank.predict(fit(bank, rows, seed=0), rows)
    assert roc_auc_score([one.side == HUMAN_SIDE for one in EXAMPLES], scores[:, 0]) == 1.0
    assert np.abs(scores[:, 1] - [one.iou for one in EXAMPLES]).mean() < 0.2


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_with_weights_of_float32(config: IvmConfig, tmp_path: Path, precision: str) -> None:
    bank = _bank(config.model_copy(update={"precision": precision}), tmp_path / "bank")
    first, last = (fit(bank, np.arange(16), seed).weights() for seed in (0, 1))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in last.values())
    assert not torch.equal(first["cls"], last["cls"])


def test_a_bank_gives_what_a_pass_from_pixels_gives_and_asks_for_each_image_once(
    config: IvmConfig, tmp_path: Path
) -> None:
    asked: list[str] = []

    def pixels(name: str) -> np.ndarray:
        asked.append(name)
        return PIXELS[name]

    bank = Bank(Encoders(config), EXAMPLES, pixels, tmp_path)
    net = fit(bank, np.arange(16), seed=0)
    rows = np.array([5, 0, 11])
    chosen = [EXAMPLES[row] for row in rows]
    direct = net.predict(
        [PIXELS[one.image] for one in chosen], [one.instruction for one in chosen], [one.decoded() for one in chosen]
    )
    np.testing.assert_allclose(bank.predict(net, rows), direct, atol=1e-5)
    assert sorted(asked) == sorted(PIXELS)


@pytest.mark.parametrize("files", [2, 3, 4])
def test_a_killed_training_resumed_ends_with_the_weights_of_an_undisturbed_one(
    config: IvmConfig, tmp_path: Path, files: int
) -> None:
    """Killed after the first state, between the two files of the second, and after the second."""
    bank, rows = _bank(config, tmp_path / "bank"), np.arange(16)
    expected = fit(bank, rows, seed=3).weights()
    with pytest.raises(KeyboardInterrupt):
        fit(bank, rows, 3, Progress(tmp_path / "part", "x", _die_after(files)))
    torch.manual_seed(99)
    again, steps = _bank(config, tmp_path / "again"), []
    progress = Progress(tmp_path / "part", "x", lambda path: steps.append(path.name))
    found = progress.read()
    assert found is not None and found[1]["step"] == (4 if files == 4 else 2)
    resumed = fit(again, rows, 3, progress).weights()
    assert len(steps) < 4
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_a_state_of_another_training_or_a_broken_one_is_left_alone(config: IvmConfig, tmp_path: Path) -> None:
    bank = _bank(config, tmp_path / "bank")
    with pytest.raises(KeyboardInterrupt):
        fit(bank, np.arange(16), 3, Progress(tmp_path / "part", "x", _die_after(2)))
    assert Progress(tmp_path / "part", "x").read() is not None
    assert Progress(tmp_path / "part", "y").read() is None
    [rest] = tmp_path.glob("part*.pt")
    rest.write_bytes(rest.read_bytes()[:100])
    assert Progress(tmp_path / "part", "x").read() is None


def test_an_interrupted_training_goes_on_and_ends_with_the_same_files(
    config: IvmConfig, trained: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    # The first fold, of three steps, leaves a state of two files and the weights; then comes the second's first state.
    with pytest.raises(KeyboardInterrupt):
        train_ivm(EXAMPLES, PIXELS.__getitem__, config, tmp_path, _die_after(5))
    files: list[str] = []
    scores = train_ivm(EXAMPLES, PIXELS.__getitem__, config, tmp_path, lambda path: files.append(path.name))
    folder, expected = trained
    assert weights_file(tmp_path, 0).name not in files
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in folder.iterdir()}
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    np.testing.assert_array_equal(scores, expected)


def test_folds_of_other_examples_are_trained_anew(
    config: IvmConfig, trained: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    for fold in range(2):
        weights_file(tmp_path, fold).write_bytes(weights_file(trained[0], fold).read_bytes())
    files: list[str] = []
    train_ivm(EXAMPLES[:-1], PIXELS.__getitem__, config, tmp_path, lambda path: files.append(path.name))
    assert {"fold-0.safetensors", "fold-1.safetensors"} <= set(files)


def test_a_mask_as_rle_is_the_mask(config: IvmConfig, trained: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    cells = [dataclasses.replace(one, mask=encode_rle(one.decoded())) for one in EXAMPLES]
    files: list[Path] = []
    for file in trained[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    scores = train_ivm(cells, PIXELS.__getitem__, config, tmp_path, files.append)
    np.testing.assert_array_equal(scores, trained[1])
    assert files == []


def test_scores_are_out_of_fold_and_those_that_training_told(trained: tuple[Path, np.ndarray]) -> None:
    folder, expected = trained
    discriminator = IvmDiscriminator.load(folder, "cpu")
    assert discriminator.id.startswith("ivm@")
    folds = set()
    for one, (d, quality) in zip(EXAMPLES, expected.tolist(), strict=True):
        [score] = discriminator.score(one.image, PIXELS[one.image], [(one.instruction, one.decoded())])
        assert isinstance(score, Scored)
        assert dataclasses.astuple(score) == pytest.approx((d, quality, fold_of(one.image, 2)), abs=1e-5)
        folds.add(score.fold)
    assert folds == {0, 1}


def test_masks_of_one_image_are_scored_each_for_itself_and_the_image_is_encoded_once(
    config: IvmConfig, trained: tuple[Path, np.ndarray]
) -> None:
    discriminator, passes = IvmDiscriminator.load(trained[0], "cpu"), []
    discriminator.net.encoders.sam.model.vision_encoder.register_forward_hook(lambda *call: passes.append(1))
    pixels = PIXELS["0.png"]
    masks = [np.roll(EXAMPLES[0].decoded(), shift, axis=1) for shift in range(0, 60, 6)]
    assert len(masks) > config.batch
    asked = [("the red square", mask) for mask in masks]
    asked[1:1] = [("the blue square", masks[0])]
    together = discriminator.score("0.png", pixels, asked, rivals=masks)
    alone = [discriminator.score("0.png", pixels, [one])[0] for one in asked]
    assert [one.d for one in together] == pytest.approx([one.d for one in alone], abs=1e-5)
    assert len({one.d for one in together}) == len(asked)
    assert discriminator.score("0.png", pixels, []) == []
    assert len(passes) == 1
    discriminator.score("1.png", PIXELS["1.png"], [("the red square", EXAMPLES[4].decoded())])
    assert len(passes) == 2


@pytest.mark.parametrize("side", [HUMAN_SIDE, MACHINE_SIDE])
def test_without_both_sides_in_every_fold_there_is_no_discriminator(
    config: IvmConfig, tmp_path: Path, side: int
) -> None:
    kept = [one for one in EXAMPLES if one.side == side]
    assert train_ivm(kept, PIXELS.__getitem__, config, tmp_path) is None
    assert train_ivm([], PIXELS.__getitem__, config, tmp_path) is None
    assert train_ivm(EXAMPLES[:4], PIXELS.__getitem__, config, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_each_objective_gives_other_weights(config: IvmConfig, tmp_path: Path) -> None:
    first, second, third = (
        fit(_bank(config.model_copy(update={"objective": name}), tmp_path / name), np.arange(16), seed=0).weights()
        for name in ("graded", "pn", "nnpu")
    )
    assert all(value.isfinite().all() for weights in (first, second, third) for value in weights.values())
    assert not torch.equal(first["cls"], second["cls"])
    assert not torch.equal(second["cls"], third["cls"])
    assert not torch.equal(first["cls"], third["cls"])


def test_a_checkpoint_that_has_gone_and_a_file_that_has_are_named(
    trained: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    for file in trained[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["sam"]["checkpoint"] = str(tmp_path / "gone")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"discriminator\.sam: .*gone"):
        IvmDiscriminator.load(tmp_path, "cpu")
    weights_file(tmp_path, 1).unlink()
    with pytest.raises(InputError, match=r"fold-1\.safetensors cannot be read"):
        IvmDiscriminator.load(tmp_path, "cpu")


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_llava_trains_resumes_and_scores_too(config: IvmConfig, tmp_path: Path, lora_rank: int) -> None:
    if lora_rank:
        pytest.importorskip("peft")
    condition = config.condition.model_copy(update={"checkpoint": llava.save(tmp_path / "llava")})
    asked = config.model_copy(update={"condition": condition, "epochs": 2, "lora_rank": lora_rank})
    expected = train_ivm(EXAMPLES, PIXELS.__getitem__, asked, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_ivm(EXAMPLES, PIXELS.__getitem__, asked, tmp_path / "killed", _die_after(2))
    scores = train_ivm(EXAMPLES, PIXELS.__getitem__, asked, tmp_path / "killed")
    assert expected is not None
    np.testing.assert_array_equal(scores, expected)
    discriminator, one = IvmDiscriminator.load(tmp_path / "killed", "cpu"), EXAMPLES[6]
    [score] = discriminator.score(one.image, PIXELS[one.image], [(one.instruction, one.decoded())])
    assert (score.d, score.quality) == pytest.approx(expected[6].tolist(), abs=1e-5)
