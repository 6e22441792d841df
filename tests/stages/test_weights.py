import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.weights import WeightConfig

SHARE = st.floats(0, 1, width=32)
ETA = st.floats(1e-3, 1)
OF_D = ("clip", "affine", "identity", "posterior", "odds")
RULES = (*OF_D, "quality")


@given(SHARE, SHARE)
def test_clip_is_exact_in_float32(d: float, quality: float) -> None:
    weight = np.float32(WeightConfig().weight(d, quality))
    assert weight == np.clip(np.float32(d), np.float32(0.1), np.float32(0.9))


@given(SHARE, SHARE, st.sampled_from(RULES), ETA)
def test_every_weight_is_a_float32(d: float, quality: float, rule: str, eta: float) -> None:
    weight = WeightConfig(rule=rule, eta=eta).weight(d, quality)
    assert float(np.float32(weight)) == weight


@given(SHARE, SHARE, SHARE, st.sampled_from(OF_D), ETA)
def test_every_rule_of_d_grows_with_d_and_ignores_quality(
    first: float, second: float, quality: float, rule: str, eta: float
) -> None:
    config = WeightConfig(rule=rule, eta=eta)
    low, high = min(first, second), max(first, second)
    assert config.weight(low, quality) <= config.weight(high, quality)
    assert config.weight(low, quality) == config.weight(low, 1 - quality)


@given(SHARE, SHARE, st.sampled_from(RULES), ETA)
def test_weights_are_finite_not_negative_and_only_odds_exceeds_1(
    d: float, quality: float, rule: str, eta: float
) -> None:
    weight = WeightConfig(rule=rule, eta=eta).weight(d, quality)
    assert 0 <= weight <= (9 if rule == "odds" else 1)


@given(SHARE, ETA, ETA)
def test_posterior_grows_with_the_share_of_good_machine_masks(d: float, first: float, second: float) -> None:
    low, high = (WeightConfig(rule="posterior", eta=eta).weight(d, 0) for eta in sorted((first, second)))
    assert low <= high


@given(st.floats(0, 0.96875, width=32), ETA)
def test_posterior_is_bayes_rule_in_double_precision(d: float, eta: float) -> None:
    weight = WeightConfig(rule="posterior", eta=eta).weight(d, 0)
    assert weight == pytest.approx(min(1.0, eta * d / (1 - d)), rel=1e-5)


def test_posterior_of_a_perfect_discriminator_is_the_true_share_of_good_masks() -> None:
    # Machine masks: a third are as human ones. Figures have two values, and d is the exact balanced PN posterior.
    human, machine = np.array([0.8, 0.2]), 1 / 3 * np.array([0.8, 0.2]) + 2 / 3 * np.array([0.1, 0.9])
    good = 1 / 3 * human / machine
    for d, share in zip(human / (human + machine), good, strict=True):
        assert WeightConfig(rule="posterior", eta=1 / 3).weight(d, 0) == pytest.approx(share, rel=1e-5)


@given(SHARE, SHARE)
def test_quality_is_the_predicted_iou_whatever_d_is(d: float, quality: float) -> None:
    assert WeightConfig(rule="quality").weight(d, quality) == quality


@pytest.mark.parametrize(
    ("config", "d", "weight"),
    [
        (WeightConfig(rule="identity"), 0.25, 0.25),
        (WeightConfig(rule="affine"), 0.5, 0.6),
        (WeightConfig(low=0.5, high=0.5), 0.0, 0.5),
        (WeightConfig(rule="posterior"), 0.0, 0.0),
        (WeightConfig(rule="posterior"), 0.5, 0.5),
        (WeightConfig(rule="posterior"), 2 / 3, 1.0),
        (WeightConfig(rule="posterior"), 1.0, 1.0),
        (WeightConfig(rule="posterior", eta=1), 0.5, 1.0),
        (WeightConfig(rule="odds"), 0.499, 0.0),
        (WeightConfig(rule="odds"), 0.5, 1.0),
        (WeightConfig(rule="odds"), 0.75, 3.0),
        (WeightConfig(rule="odds"), 1.0, 9.0),
        (WeightConfig(rule="odds", high=0.5), 1.0, 1.0),
    ],
)
def test_rules_have_their_known_values(config: WeightConfig, d: float, weight: float) -> None:
    assert config.weight(d, 0) == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 0.9, "high": 0.1},
        {"high": 1.5},
        {"rule": "sigmoid"},
        {"lo": 0.1},
        {"eta": 0},
        {"eta": 1.1},
        {"rule": "odds", "high": 1},
        {"rule": "odds", "high": 0.4},
    ],
)
def test_a_wrong_config_is_refused(wrong: dict[str, float | str]) -> None:
    with pytest.raises(ValidationError):
        WeightConfig.model_validate(wrong)
