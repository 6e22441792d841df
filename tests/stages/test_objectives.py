import math

import numpy as np
import pytest
import torch

from stages.objectives import (
    HUMAN_SIDE,
    MACHINE_SIDE,
    NO_SIDE,
    WRONG_SIDE,
    graded_risk,
    nnpu_risk,
    pn_risk,
    side_weights,
)

SIDES = [HUMAN_SIDE] * 3 + [MACHINE_SIDE] * 7 + [WRONG_SIDE] * 2 + [NO_SIDE] * 4


def _logits(shift: float = 0.0) -> list[float]:
    return [float(value) + shift for value in np.random.default_rng(0).normal(size=len(SIDES))]


def _risk(logits: list[float], side: int, positive: bool) -> float:
    """Mean logistic loss of one side taken for positive or negative, one example at a time."""
    losses = [
        math.log1p(math.exp(-logit if positive else logit))
        for logit, of in zip(logits, SIDES, strict=True)
        if of == side
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("prior", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_nnpu_is_equation_6_computed_in_a_straight_line(prior: float, shift: float) -> None:
    logits, side = _logits(shift), torch.tensor(SIDES)
    negative = _risk(logits, MACHINE_SIDE, False) - prior * _risk(logits, HUMAN_SIDE, False)
    expected = prior * _risk(logits, HUMAN_SIDE, True) + max(0.0, negative) + _risk(logits, WRONG_SIDE, False) / 2
    risk = nnpu_risk(torch.tensor(logits), side, side_weights(side), prior)
    assert float(risk) == pytest.approx(expected, rel=1e-5)


def test_nnpu_never_pays_for_pushing_unlabelled_masks_below_what_the_prior_allows() -> None:
    side = torch.tensor([HUMAN_SIDE, MACHINE_SIDE])
    logits = torch.tensor([5.0, -5.0], requires_grad=True)
    nnpu_risk(logits, side, side_weights(side), 0.5).backward()
    assert logits.grad is not None
    assert logits.grad[1] == 0


def test_pn_is_cross_entropy_with_half_the_weight_on_human_masks() -> None:
    logits, side = _logits(), torch.tensor(SIDES)
    wrong = _risk(logits, MACHINE_SIDE, False) + _risk(logits, WRONG_SIDE, False)
    expected = _risk(logits, HUMAN_SIDE, True) / 2 + wrong / 4
    assert float(pn_risk(torch.tensor(logits), side, side_weights(side))) == pytest.approx(expected, rel=1e-5)


def test_graded_is_pn_where_experts_masks_are_worthless() -> None:
    logits, side = torch.tensor(_logits()), torch.tensor(SIDES)
    weights = side_weights(side)
    expected = float(pn_risk(logits, side, weights))
    assert float(graded_risk(logits, side, weights, torch.zeros(len(SIDES)))) == pytest.approx(expected)


@pytest.mark.parametrize("iou", [0.0, 0.4, 1.0])
def test_graded_draws_an_experts_mask_to_half_its_true_iou(iou: float) -> None:
    side = torch.tensor([HUMAN_SIDE, MACHINE_SIDE])
    logits = torch.zeros(2, requires_grad=True)
    graded_risk(logits, side, side_weights(side), torch.full((2,), iou)).backward()
    assert logits.grad is not None
    # Weight 1/4 of a mean over the side's one example; sigmoid(0) is 1/2.
    assert float(logits.grad[1]) == pytest.approx((0.5 - iou / 2) / 4)


def test_examples_without_a_side_count_for_nothing() -> None:
    side = torch.tensor(SIDES)
    logits = torch.tensor(_logits(), requires_grad=True)
    pn_risk(logits, side, side_weights(side)).backward()
    assert logits.grad is not None
    assert (logits.grad[side == NO_SIDE] == 0).all()
    assert (logits.grad[side != NO_SIDE] != 0).all()
