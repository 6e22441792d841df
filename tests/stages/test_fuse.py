from typing import Literal

import numpy as np
import pytest
from drawn_shard import candidate
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masks import encode_heatmap
from stages.base import Row
from stages.fuse import FusionConfig, fuse

INSTRUCTION = "put the cup on the plate"
RULES = ["mean", "score", "d", "quality", "best", "em", "staple"]


def _mask(*columns: int) -> np.ndarray:
    mask = np.zeros((6, 10), dtype=bool)
    mask[:, list(columns)] = True
    return mask


def _scores(*pairs: tuple[Row, float]) -> dict[str, Row]:
    return {row["candidate_id"]: {"d": value, "quality": value} for row, value in pairs}


def _columns(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask.any(axis=0)).tolist()


LEFT = candidate("u", "a", _mask(0, 1, 2), "the cup")
MIDDLE = candidate("u", "b", _mask(1, 2, 3), "the cup")
RIGHT = candidate("u", "c", _mask(7, 8), "the cup")
PLATE = candidate("u", "a", _mask(9), "the plate", k=1)
WHOLE = candidate("u", "d", _mask(0, 1, 2, 3, 4), INSTRUCTION)


def test_rivals_for_one_phrase_vote_by_quality() -> None:
    rows = [LEFT, MIDDLE, RIGHT]
    fused = fuse(INSTRUCTION, rows, _scores((LEFT, 0.4), (MIDDLE, 0.4), (RIGHT, 0.2)), FusionConfig())
    assert fused.heatmap[0].tolist() == pytest.approx([0.5, 1, 1, 0.5, 0, 0, 0, 0.25, 0.25, 0])
    assert _columns(fused.mask) == [0, 1, 2, 3]


def test_the_mean_ignores_quality() -> None:
    scores = _scores((LEFT, 0.9), (MIDDLE, 0.9), (RIGHT, 0.001))
    heatmap = fuse(INSTRUCTION, [LEFT, MIDDLE, RIGHT], scores, FusionConfig(rule="mean")).heatmap
    assert heatmap[0, 7] == heatmap[0, 0] == pytest.approx(0.5)


def test_the_rule_d_votes_by_d_and_the_rule_quality_by_quality() -> None:
    scores = {
        LEFT["candidate_id"]: {"d": 0.9, "quality": 0.1},
        RIGHT["candidate_id"]: {"d": 0.1, "quality": 0.9},
    }
    assert _columns(fuse(INSTRUCTION, [LEFT, RIGHT], scores, FusionConfig(rule="d")).mask) == [0, 1, 2]
    assert _columns(fuse(INSTRUCTION, [LEFT, RIGHT], scores, FusionConfig(rule="quality")).mask) == [7, 8]


def test_the_rule_score_votes_by_the_experts_scores_whatever_the_discriminator_says() -> None:
    sure, unsure = LEFT | {"score": 0.9}, RIGHT | {"score": 0.2}
    fused = fuse(INSTRUCTION, [sure, unsure], _scores((sure, 0.1), (unsure, 0.9)), FusionConfig(rule="score"))
    assert _columns(fused.mask) == [0, 1, 2]


@pytest.mark.parametrize("rule", ["em", "staple"])
def test_two_raters_that_agree_outvote_a_third_that_is_elsewhere(rule: Literal["em", "staple"]) -> None:
    fused = fuse(INSTRUCTION, [LEFT, LEFT | {"expert": "b"}, RIGHT], {}, FusionConfig(rule=rule))
    assert _columns(fused.mask) == [0, 1, 2]
    assert fused.experts == {"a", "b", "c"}


def test_best_takes_the_one_candidate_of_highest_quality_and_names_its_expert() -> None:
    scores = _scores((LEFT, 0.4), (MIDDLE, 0.5), (RIGHT, 0.3))
    fused = fuse(INSTRUCTION, [LEFT, MIDDLE, RIGHT], scores, FusionConfig(rule="best"))
    assert _columns(fused.mask) == [1, 2, 3]
    assert fused.experts == {"b"}


@pytest.mark.parametrize("rule", RULES)
def test_targets_of_several_phrases_are_united(rule: str) -> None:
    fused = fuse(INSTRUCTION, [LEFT, PLATE], _scores((LEFT, 0.6), (PLATE, 0.5)), FusionConfig(rule=rule))
    assert _columns(fused.mask) == [0, 1, 2, 9]
    assert fused.experts == {"a"}


def test_a_candidate_for_the_whole_instruction_votes_beside_the_union_of_the_phrases() -> None:
    scores = _scores((LEFT, 0.5), (PLATE, 0.5), (WHOLE, 0.5))
    fused = fuse(INSTRUCTION, [LEFT, PLATE, WHOLE], scores, FusionConfig())
    assert fused.heatmap[0].tolist() == pytest.approx([1, 1, 1, 0.5, 0.5, 0, 0, 0, 0, 0.5])
    assert fused.experts == {"a", "d"}


def test_a_soft_expert_votes_with_its_heatmap() -> None:
    heatmap = np.tile(np.linspace(0, 1, 10, dtype=np.float32), (6, 1))
    soft = candidate("u", "soft", heatmap >= 0.5, "the cup") | {"heatmap": encode_heatmap(heatmap)}
    fused = fuse(INSTRUCTION, [soft], _scores((soft, 0.5)), FusionConfig())
    assert np.abs(fused.heatmap - heatmap).max() <= 1 / 255


def test_without_a_discriminator_the_experts_own_scores_weigh() -> None:
    sure, unsure = LEFT | {"score": 0.9}, RIGHT | {"score": 0.2}
    null = {row["candidate_id"]: {"d": None, "quality": None} for row in (sure, unsure)}
    for scores in (null, {}):
        assert _columns(fuse(INSTRUCTION, [sure, unsure], scores, FusionConfig()).mask) == [0, 1, 2]


@pytest.mark.parametrize("rule", RULES)
def test_weights_of_zero_still_give_a_label(rule: str) -> None:
    fused = fuse(INSTRUCTION, [LEFT, RIGHT], _scores((LEFT, 0.0), (RIGHT, 0.0)), FusionConfig(rule=rule))
    assert np.isfinite(fused.heatmap).all() and fused.mask.any()


@pytest.mark.parametrize("rule", RULES)
def test_heatmaps_that_are_zero_everywhere_give_an_empty_mask(rule: str) -> None:
    nothing = LEFT | {"heatmap": encode_heatmap(np.zeros((6, 10), dtype=np.float32))}
    assert not fuse(INSTRUCTION, [nothing], _scores((nothing, 0.5)), FusionConfig(rule=rule)).mask.any()


@given(st.lists(st.tuples(st.sampled_from([LEFT, MIDDLE, RIGHT, PLATE, WHOLE]), st.floats(0, 1)), min_size=1))
def test_heatmaps_are_float32_from_0_to_1_at_the_images_size(chosen: list[tuple[Row, float]]) -> None:
    rows = [row | {"candidate_id": str(k)} for k, (row, _) in enumerate(chosen)]
    scores = _scores(*((row, quality) for row, (_, quality) in zip(rows, chosen, strict=True)))
    for rule in RULES:
        fused = fuse(INSTRUCTION, rows, scores, FusionConfig(rule=rule))
        assert fused.heatmap.dtype == np.float32 and fused.heatmap.shape == (6, 10)
        assert fused.heatmap.min() >= 0 and fused.heatmap.max() == 1
        assert fused.experts <= {row["expert"] for row in rows}
