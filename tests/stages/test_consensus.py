import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.consensus import ConsensusRule, consensus

RULES: tuple[ConsensusRule, ...] = ("em", "staple")


def _box(x1: int, y1: int, x2: int, y2: int, height: int = 16, width: int = 16) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


THREE = [_box(4, 4, 12, 12), _box(5, 5, 14, 13), _box(3, 5, 11, 13)]
PIXELS = [(0, 0), (5, 3), (5, 12), (12, 5), (4, 4), (5, 4), (5, 11), (5, 5)]
"""One pixel of each of the eight patterns of votes."""


# What SimpleITK 2.5.7's STAPLEImageFilter and crowd-kit 1.4.2's DawidSkene gave on these masks at convergence.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("staple", [0.000932, 0.107087, 0.053836, 0.879711, 0.145464, 0.956292, 0.912128, 0.999251]),
        ("em", [0.000766, 0.090911, 0.045575, 0.861611, 0.124422, 0.948791, 0.898448, 0.999134]),
    ],
)
def test_the_posterior_is_that_of_the_published_implementations(rule: ConsensusRule, expected: list[float]) -> None:
    found = consensus(THREE, rule)
    assert [found[pixel] for pixel in PIXELS] == pytest.approx(expected, abs=5e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("rule", RULES)
def test_a_small_object_in_a_large_image_is_not_inverted(rule: ConsensusRule) -> None:
    raters = [_box(100 + k, 100, 103 + k, 103, 400, 400) for k in (0, 0, 1)]
    assert (consensus(raters, rule) >= 0.5)[100:103, 100:103].all()
    assert (consensus(raters, rule) >= 0.5).sum() == 9


@pytest.mark.parametrize("rule", RULES)
def test_masks_that_fill_the_image_fall_back_to_the_votes_and_not_to_the_reverse(rule: ConsensusRule) -> None:
    raters = [_box(0, 0, 8, 12, 13, 8), _box(1, 6, 8, 13, 13, 8)]
    assert consensus(raters, rule) == pytest.approx(np.mean(raters, axis=0))


@pytest.mark.parametrize("rule", RULES)
def test_raters_of_one_mind_get_their_mask(rule: ConsensusRule) -> None:
    for mask in (_box(2, 3, 9, 12), _box(0, 0, 16, 16), _box(15, 15, 16, 16)):
        assert ((consensus([mask] * 3, rule) >= 0.5) == mask).all()


@pytest.mark.parametrize("rule", RULES)
def test_raters_that_drew_nothing_at_all_give_nothing(rule: ConsensusRule) -> None:
    assert not consensus([_box(0, 0, 0, 0)] * 2, rule).any()


@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2), min_size=1, max_size=12),
    st.sampled_from(RULES),
)
def test_what_nobody_drew_is_never_target(boxes: list[tuple[int, int, int, int]], rule: ConsensusRule) -> None:
    masks = [_box(x, y, x + w, y + h) for x, y, w, h in boxes]
    found = consensus(masks, rule)
    assert ((found >= 0) & (found <= 1)).all()
    assert not ((found >= 0.5) & ~np.any(masks, axis=0)).any()
