import dataclasses
from pathlib import Path

import numpy as np
import pytest
from drawn_shard import draw_shard
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from stages.comparison import NAIVE, naive_d, out_of_fold, trained_otherwise
from stages.discriminator import DiscriminatorConfig, prepare, train
from stages.examples import HUMAN, OWN, Example, examples

CONFIG = DiscriminatorConfig(folds=2, epochs=8)


@pytest.fixture(scope="module")
def found() -> list[Example]:
    return examples(*draw_shard(40))


@pytest.fixture(scope="module")
def others(found: list[Example]) -> dict[str, dict[str, float]]:
    return trained_otherwise(found, CONFIG)


def test_every_experts_mask_gets_a_d_from_each_discriminator_that_the_run_did_not_use(
    found: list[Example], others: dict[str, dict[str, float]]
) -> None:
    assert list(others) == ["d pn", "d nnpu", NAIVE]
    machine = {one.candidate_id for one in found if one.machine}
    assert len(machine) == 160
    for values in others.values():
        assert set(values) == machine
        assert all(0 <= d <= 1 for d in values.values())
        assert len(set(values.values())) > 10


def test_the_objective_that_the_run_used_is_not_trained_again(found: list[Example]) -> None:
    used = CONFIG.model_copy(update={"objective": "nnpu", "epochs": 1})
    assert list(trained_otherwise(found, used)) == ["d graded", "d pn", NAIVE]


def test_d_of_another_objective_is_what_a_run_with_that_objective_would_have_given(
    found: list[Example], others: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    metrics = train(found, CONFIG.model_copy(update={"objective": "nnpu"}), tmp_path)
    machine = [one for one in found if one.machine and one.kind == OWN]
    d = [others["d nnpu"][one.candidate_id] for one in machine]
    assert metrics is not None
    assert spearmanr(d, [one.iou for one in machine]).statistic == pytest.approx(metrics["d_spearman"], abs=1e-6)


def test_the_naive_one_sees_no_true_iou_and_tells_human_from_experts_masks(found: list[Example]) -> None:
    asked = [one for one in found if one.kind == OWN and (one.machine or one.maker == HUMAN)]
    d = naive_d(found, asked, CONFIG)
    assert d is not None
    assert (d == naive_d([dataclasses.replace(one, iou=0.5) for one in found], asked, CONFIG)).all()
    assert roc_auc_score([one.maker == HUMAN for one in asked], d) > 0.6


def test_scores_come_from_a_model_that_did_not_train_on_the_image(found: list[Example]) -> None:
    # As noise that only the same image repeats: a model that trained on the image could tell, another cannot.
    rng = np.random.default_rng(0)
    noise = []
    for k in range(90):
        figures = rng.random(len(found[0].figures)).astype(np.float32)
        figures[:4] = 0.2, 0.2, 0.8, 0.8  # One box for all: else a mask would be its own rival, and no noise.
        one = dataclasses.replace(
            found[0], image=f"{k}.png", figures=figures, maker=(HUMAN, "a")[k % 2], machine=k % 2 == 1
        )
        noise += [one] * 4
    d = out_of_fold(prepare(noise, 2), np.ones(len(noise), dtype=bool), DiscriminatorConfig(folds=2, epochs=20))[:, 0]
    assert 0.25 < roc_auc_score([one.maker == HUMAN for one in noise], d) < 0.75


def test_too_few_images_give_no_discriminator() -> None:
    assert trained_otherwise(examples(*draw_shard(1)), CONFIG) == {}
