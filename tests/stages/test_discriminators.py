import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_shard import draw_shard

from pipeline.errors import InputError
from pipeline.given_discriminator import GivenDiscriminator
from pipeline.images import decode_image
from stages.discriminator import DiscriminatorConfig, weights_file
from stages.discriminators import Scorer, check_discriminator, load_discriminator, train_any
from stages.examples import HUMAN, OWN, examples, fold_of
from stages.fuse import FusionConfig
from stages.ivm_config import IvmConfig
from stages.label import Label
from stages.score import Score
from stages.weights import WeightConfig
from tests.helpers.discriminator_run import commit_discriminator
from tests.tiny import ivm, region_clip

torch.set_num_threads(1)

SHARD = draw_shard(4)
SAMPLES, CANDIDATES, ENCODED = SHARD


def pixels(image: str) -> np.ndarray:
    return decode_image(ENCODED[image])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> IvmConfig:
    sam = {"checkpoint": ivm.save_sam(tmp_path_factory.mktemp("sam"))}
    condition = {"checkpoint": region_clip.save(tmp_path_factory.mktemp("clip"))["checkpoint"]}
    fields = {"device": "cpu", "batch": 64, "folds": 2, "epochs": 1}
    return IvmConfig.model_validate({"sam": sam, "condition": condition} | fields).pinned()


@pytest.fixture(scope="module")
def folder(config: IvmConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ivm")
    assert train_any(examples(*SHARD), pixels, config, folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return load_discriminator(folder, "cpu")


def _copy(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_an_ivm_trained_on_examples_scores_each_candidate_and_human_mask_out_of_fold(scorer: Scorer) -> None:
    output = Score(scorer, WeightConfig()).run(SAMPLES, CANDIDATES, ENCODED)
    assert len(output.rows) == len(SAMPLES) + len(CANDIDATES) and not output.rejects
    image_of = {sample["uuid"]: sample["image"] for sample in SAMPLES}
    for row in output.rows:
        assert 0 <= row["d"] <= 1 and 0 <= row["quality"] <= 1
        assert row["fold"] == fold_of(image_of[row["uuid"]], 2)
        assert row["discriminator"] == scorer.id
    assert len({row["d"] for row in output.rows}) > len(SAMPLES)


def test_labels_of_unlabelled_pairs_get_d_from_an_ivm(scorer: Scorer) -> None:
    unlabelled = [row | {"branch": "unlabelled", "human_mask": None} for row in SAMPLES]
    scores = Score(scorer, WeightConfig()).run(unlabelled, CANDIDATES, ENCODED).rows
    rows = Label(scorer, WeightConfig(), FusionConfig()).run(unlabelled, CANDIDATES, scores, ENCODED).rows
    assert len(rows) == len(SAMPLES)
    assert all(0 <= row["d"] <= 1 for row in rows if row["mask"]) and any(row["mask"] for row in rows)


def test_metrics_of_an_ivm_are_of_all_examples_that_the_small_one_is_judged_on(folder: Path, tmp_path: Path) -> None:
    small = train_any(examples(*SHARD), pixels, DiscriminatorConfig(folds=2, epochs=1), tmp_path)
    told = json.loads((folder / "metrics.json").read_text())
    assert small is not None and told.keys() == small.keys()
    assert told["examples"] == small["examples"]
    assert load_discriminator(tmp_path, "cpu").id.startswith("small@")
    assert check_discriminator(tmp_path) == load_discriminator(tmp_path, "cpu").id


def test_of_human_masks_alone_there_is_no_ivm(config: IvmConfig, tmp_path: Path) -> None:
    found = [one for one in examples(*SHARD) if one.maker == HUMAN and one.kind == OWN]
    assert found and train_any(found, pixels, config, tmp_path) is None


def test_weights_of_the_small_one_in_the_folder_are_trained_over(config: IvmConfig, tmp_path: Path) -> None:
    found = examples(*SHARD)
    assert train_any(found, pixels, DiscriminatorConfig(folds=2, epochs=1), tmp_path)
    assert train_any(found, pixels, config, tmp_path)
    assert load_discriminator(tmp_path, "cpu").id.startswith("ivm@")
    assert train_any(found, pixels, DiscriminatorConfig(folds=2, epochs=1), tmp_path)
    assert load_discriminator(tmp_path, "cpu").id.startswith("small@")


def test_a_given_ivm_is_all_files_of_its_folder_with_its_id(folder: Path, scorer: Scorer, tmp_path: Path) -> None:
    given = GivenDiscriminator.read(commit_discriminator(folder, tmp_path / "run").output, "elsewhere")
    assert given.origin.id == scorer.id
    assert given.files == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_given_ivm_whose_checkpoint_is_gone_or_another_is_one_line(
    config: IvmConfig, folder: Path, tmp_path: Path
) -> None:
    _copy(folder, tmp_path)
    gone = config.sam.model_copy(update={"checkpoint": str(tmp_path / "gone")})
    other = config.condition.model_copy(update={"version": "clip@sha256:0"})
    for field, wrong, words in (
        ("sam", gone, r"discriminator\.sam: .*gone does not exist"),
        ("condition", other, r"discriminator\.condition: .* trained on clip@sha256:0; restore"),
    ):
        (tmp_path / "config.json").write_text(config.model_copy(update={field: wrong}).model_dump_json())
        with pytest.raises(InputError, match=words) as caught:
            check_discriminator(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    weights_file(tmp_path, 1).write_bytes(b"broken")
    with pytest.raises(InputError, match=r"fold-1\.safetensors cannot be read"):
        check_discriminator(tmp_path)


def test_configs_and_workers_load_no_model_library() -> None:
    code = "import sys, pipeline.config, pipeline.unit_workers; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
