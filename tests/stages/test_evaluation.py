import numpy as np
import pandas as pd
import pytest
from drawn_shard import candidate, sample

from stages.base import Row
from stages.evaluation import (
    RULES,
    answer_table,
    judge_answers,
    judge_masks,
    judge_rules,
    label_quality,
    quantity_over_d,
    scorer_table,
)
from stages.fuse import FusionConfig

EXPERTS = ("a", "b", "mute")


def _mask(*columns: int) -> np.ndarray:
    mask = np.zeros((4, 40), dtype=bool)
    mask[:, list(columns)] = True
    return mask


def _pair(uuid: str, human: np.ndarray) -> Row:
    return sample(uuid, "x.png", "the cup", human)


HUMAN = _mask(*range(10))
EXACT = candidate("u", "a", HUMAN, "cup", score=0.9)
HALF = candidate("u", "b", _mask(*range(5)), "cup", score=0.2)
ASIDE = candidate("u", "b", _mask(*range(20, 40)), "cup", k=1, score=0.8)


def _answers(pairs: list[tuple[Row, list[Row]]]) -> pd.DataFrame:
    judged = [row for pair, rows in pairs for row in judge_answers(pair, rows, {}, EXPERTS, FusionConfig(rule="best"))]
    return answer_table(pd.DataFrame(judged)).set_index("label")


def test_every_expert_has_a_row_and_no_answer_counts_as_0() -> None:
    table = _answers([(_pair("u", HUMAN), [EXACT]), (_pair("v", HUMAN), [])])
    assert list(table.index) == ["a", "b", "mute", "fused", "best"]
    assert table["mean IoU"].to_dict() == {"a": 0.5, "b": 0.0, "mute": 0.0, "fused": 0.5, "best": 0.5}
    assert table["answered"].to_dict() == {"a": 0.5, "b": 0.0, "mute": 0.0, "fused": 0.5, "best": 0.5}


def test_giou_is_the_mean_over_pairs_and_ciou_weighs_them_by_area() -> None:
    small = _mask(0)
    missed = candidate("v", "a", _mask(39), "cup")
    table = _answers([(_pair("u", HUMAN), [EXACT]), (_pair("v", small), [missed])])
    assert table.loc["a", "gIoU"] == 0.5
    assert table.loc["a", "cIoU"] == pytest.approx(10 / 12)


def test_nothing_found_where_nothing_is_to_be_found_is_1_for_giou_and_no_pair_for_mean_iou() -> None:
    nowhere = _pair("v", _mask())
    table = _answers([(_pair("u", HUMAN), [HALF]), (nowhere, [])])
    assert table.loc["b", ["mean IoU", "gIoU"]].tolist() == [0.5, 0.75]
    wrong = _answers([(nowhere, [candidate("v", "b", HUMAN, "cup")])])
    assert wrong.loc["b", "gIoU"] == 0 and wrong.loc["a", "gIoU"] == 1


def test_precision_counts_pairs_from_the_threshold_on() -> None:
    table = _answers([(_pair("u", HUMAN), [candidate("u", "a", _mask(*range(7)), "cup")])])
    assert table.loc["a", ["P@0.5", "P@0.7", "P@0.9"]].tolist() == [1, 1, 0]


def test_boxes_are_ranked_by_the_experts_own_score() -> None:
    table = _answers([(_pair("u", HUMAN), [HALF, ASIDE])])
    assert table.loc["b", ["box P@1", "box P@5", "box P@10"]].tolist() == [0, 1, 1]
    assert table.loc["mute", "box P@10"] == 0


def test_the_best_possible_is_the_best_candidate_and_its_boxes_have_no_rank() -> None:
    table = _answers([(_pair("u", HUMAN), [HALF, ASIDE])])
    assert table.loc["fused", "mean IoU"] == 0 and table.loc["best", "mean IoU"] == 0.5
    assert np.isnan(table.loc["best", "box P@1"])


def test_recall_asks_for_any_candidate_of_the_expert() -> None:
    table = _answers([(_pair("u", HUMAN), [HALF, ASIDE]), (_pair("v", HUMAN), [])])
    assert table["recall"].to_dict() == {"a": 0, "b": 0.5, "mute": 0, "fused": 0.5, "best": 0.5}


def test_every_rule_is_judged_on_the_same_pairs() -> None:
    rows = judge_rules(_pair("u", HUMAN), [EXACT], {}) + judge_rules(_pair("v", HUMAN), [], {})
    table = answer_table(pd.DataFrame(rows)).set_index("label")
    assert tuple(table.index) == RULES
    assert set(table["mean IoU"]) == {0.5}


def test_agreement_is_the_mean_of_the_best_iou_with_each_other_expert() -> None:
    third = candidate("u", "c", _mask(*range(20, 40)), "cup")
    judged = judge_masks(_pair("u", HUMAN), [EXACT, HALF, ASIDE, third], {})
    assert [row["agreement"] for row in judged] == pytest.approx([0.25, 0.25, 0.5, 0.5])
    assert [row["iou"] for row in judged] == pytest.approx([1, 0.5, 0, 0])
    assert judge_masks(_pair("u", HUMAN), [HALF, ASIDE], {})[0]["agreement"] is None


def test_softmin_is_the_mean_probability_of_the_label_with_the_least_likely_pixels_weighing_most() -> None:
    mask = np.array([[True, False]])
    assert label_quality(mask, np.array([[1.0, 0.0]])) == pytest.approx(1)
    assert label_quality(~mask, np.array([[1.0, 0.0]])) == pytest.approx(0)
    weights = np.exp([-0.4 / 0.1, -0.8 / 0.1])
    expected = (weights @ [0.4, 0.8]) / weights.sum()
    assert label_quality(mask, np.array([[0.4, 0.2]])) == pytest.approx(expected)
    assert 0.4 < expected < 0.42


def test_softmin_is_what_cleanlab_gives() -> None:
    mask = np.add.outer(np.arange(4), np.arange(5)) % 3 == 0
    foreground = np.linspace(0, 1, 20).reshape(4, 5)
    # cleanlab 2.9.0: segmentation.rank.get_label_quality_scores(mask[None].astype(int), stack([1 - p, p])[None])
    assert label_quality(mask, foreground) == pytest.approx(0.05098627361607025)


def test_softmin_is_by_the_other_experts_vote_one_for_each_however_many_masks_it_has() -> None:
    third = candidate("u", "c", HUMAN, "cup")
    exact, half, _, _ = judge_masks(_pair("u", HUMAN), [EXACT, HALF, ASIDE, third], {})
    vote = (HUMAN + (_mask(*range(5)) + 0.0 + _mask(*range(20, 40))) / 2) / 2
    assert exact["softmin"] == pytest.approx(label_quality(HUMAN, vote), abs=1e-5)
    assert half["softmin"] == pytest.approx(label_quality(_mask(*range(5)), HUMAN + 0.0), abs=1e-5)
    assert judge_masks(_pair("u", HUMAN), [HALF, ASIDE], {})[0]["softmin"] is None


def test_scorers_are_compared_over_all_masks_and_within_each_expert() -> None:
    iou = [0.1, 0.5, 0.8, 0.2, 0.6, 0.9]
    masks = pd.DataFrame({"expert": list("aaabbb"), "iou": iou, "d": iou, "quality": [1 - x for x in iou]})
    masks = masks.assign(score=0.5, agreement=[None, None, 0.3, 0.2, 0.6, 0.9])
    table = scorer_table(masks).set_index(["expert", "scorer"])
    for expert in ("all", "a", "b"):
        assert table.loc[(expert, "d"), ["spearman", "auc"]].tolist() == pytest.approx([1, 1])
        assert table.loc[(expert, "quality"), ["spearman", "auc"]].tolist() == pytest.approx([-1, 0])
        assert np.isnan(table.loc[(expert, "score"), "spearman"])
        assert table.loc[(expert, "score"), "auc"] == 0.5
    assert table["masks"].xs("agreement", level="scorer").to_dict() == {"all": 4, "a": 1, "b": 3}
    assert table["good"].xs("d", level="scorer").to_dict() == pytest.approx({"all": 1 / 3, "a": 1 / 3, "b": 1 / 3})


def test_a_run_without_discriminator_still_compares_the_other_scorers() -> None:
    judged = judge_masks(_pair("u", HUMAN), [EXACT, HALF, ASIDE], {EXACT["candidate_id"]: {"d": None}})
    table = scorer_table(pd.DataFrame(judged)).set_index(["expert", "scorer"])
    assert table.loc[("all", "d"), "masks"] == 0 and np.isnan(table.loc[("all", "d"), "spearman"])
    assert table.loc[("all", "score"), "masks"] == 3


def test_masks_are_counted_by_source_expert_and_tenth_of_d() -> None:
    samples = [{"uuid": "u", "source": "s"}, {"uuid": "v", "source": "t"}]
    found = {"u/human": 1.0, "u/a/0": 0.05, "u/a/1": 0.0, "v/a/0": 0.95, "v/b/0": None}
    scores = [{"uuid": name[0], "candidate_id": name, "d": d} for name, d in found.items()]
    counts = quantity_over_d(samples, scores)
    assert counts.to_dict() == {("s", "human", 9): 1, ("s", "a", 0): 2, ("t", "a", 9): 1}
