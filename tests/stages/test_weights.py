import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.weights import WeightConfig

D = st.floats(0, 1, width=32)


@given(D)
def test_clip_is_exact_in_float32(d: float) -> None:
    weight = np.float32(WeightConfig().weight(d))
    assert weight == np.clip(np.float32(d), np.float32(0.1), np.float32(0.9))


@given(D, D, st.sampled_from(["clip", "affine", "identity"]))
def test_every_rule_grows_with_d_and_stays_within_0_and_1(first: float, second: float, rule: str) -> None:
    config = WeightConfig(rule=rule)
    low, high = config.weight(min(first, second)), config.weight(max(first, second))
    assert 0 <= low <= high <= np.float32(0.2) + np.float32(0.8)


def test_rules_have_their_known_values() -> None:
    assert WeightConfig(rule="identity").weight(0.25) == 0.25
    assert WeightConfig(rule="affine").weight(0.5) == pytest.approx(0.6)
    assert WeightConfig(low=0.5, high=0.5).weight(0.0) == 0.5


@pytest.mark.parametrize("wrong", [{"low": 0.9, "high": 0.1}, {"high": 1.5}, {"rule": "sigmoid"}, {"lo": 0.1}])
def test_a_wrong_config_is_refused(wrong: dict[str, float | str]) -> None:
    with pytest.raises(ValidationError):
        WeightConfig.model_validate(wrong)
