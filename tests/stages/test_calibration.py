import numpy as np
import pytest

from stages.calibration import metrics
from stages.examples import ABSENT, HUMAN, OWN, Example


def _found(count: int, tell: bool) -> tuple[list[Example], np.ndarray]:
    """Human and machine masks of `count` images; `tell` gives them away by their area. And P(human) of 0.8 or 0.2,
    four times in five right, with the true IoU as quality."""
    rng = np.random.default_rng(0)
    found, scores = [], []
    for k in range(count):
        for machine in (False, True):
            figures = rng.normal(size=12).astype(np.float32)
            figures[6] += 4 * machine * tell
            iou = float(rng.random()) if machine else 1.0
            maker = ("a", "b")[k % 2] if machine else HUMAN
            found.append(Example(f"{k}.png", "drawn", "x", maker, machine, OWN, figures, iou))
            scores.append((0.8 if machine == (rng.random() < 0.2) else 0.2, iou))
    return found, np.array(scores, dtype=np.float32)


def test_a_calibrated_d_has_a_small_calibration_error_and_an_overconfident_one_a_large() -> None:
    found, scores = _found(600, tell=False)
    figures = metrics(found, scores, 3)
    assert figures["ece"] < 0.03
    assert figures["auc"] == pytest.approx(0.8, abs=0.03)
    assert figures["brier"] == pytest.approx(0.16, abs=0.02)
    assert [round(bin["d"], 1) for bin in figures["reliability"]] == [0.2, 0.8]
    scores[:, 0] = np.where(scores[:, 0] > 0.5, 0.999, 0.001)
    assert metrics(found, scores, 3)["ece"] == pytest.approx(0.2, abs=0.03)


def test_the_leak_alarm_rings_when_the_area_gives_machine_masks_away_and_is_silent_otherwise() -> None:
    found, scores = _found(200, tell=True)
    assert metrics(found, scores, 3)["auc_leak"] > 0.95
    found, scores = _found(200, tell=False)
    assert 0.4 < metrics(found, scores, 3)["auc_leak"] < 0.6


def test_ranks_are_given_overall_by_expert_and_by_source() -> None:
    found, scores = _found(60, tell=False)
    figures = metrics(found, scores, 3)
    assert figures["quality_spearman"] == pytest.approx(1)
    assert set(figures["by_expert"]) == {"a", "b"}
    assert figures["by_expert"]["a"]["machine_masks"] == 30
    assert figures["by_source"]["drawn"]["auc"] == figures["auc"]


def test_what_cannot_be_told_is_null() -> None:
    found, scores = _found(20, tell=False)
    figures = metrics(found, scores, 3)
    assert figures["auc_wrong_target"] is None
    assert figures["quality_absent"] is None
    absent = Example("0.png", "drawn", "y", HUMAN, False, ABSENT, found[0].figures, 0.0)
    again = metrics([*found, absent], np.vstack([scores, [[0.5, 0.25]]]).astype(np.float32), 3)
    assert again["quality_absent"] == pytest.approx(0.25)
    assert again["auc"] == figures["auc"]
