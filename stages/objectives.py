"""What the head d is trained to minimise: human masks against experts', these graded, as negatives or unlabelled."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Objective = Literal["graded", "pn", "nnpu"]

HUMAN_SIDE, MACHINE_SIDE, WRONG_SIDE, NO_SIDE = 1, 0, -1, -2
"""Sides of d: human masks; experts' masks; masks known to be wrong, such as corrupted ones; and masks left out."""


def side_weights(side: Tensor) -> Tensor:
    """float32 (n,): one over the share of each example's side, 0 where it has none; their mean over a side's examples
    and all others is 1, so that a mean over a random batch estimates each side's risk whatever the sides' sizes."""
    weights = side.new_zeros(len(side)).float()
    for value in (HUMAN_SIDE, MACHINE_SIDE, WRONG_SIDE):
        members = side == value
        if members.any():
            weights[members] = len(side) / members.sum()
    return weights


def pn_risk(logits: Tensor, side: Tensor, weights: Tensor) -> Tensor:
    """Binary cross entropy, human masks against all others: 1/2 human, 1/4 experts', 1/4 wrong ones.

    The authors' objective (arXiv 2405.19783, section 4) with wrong masks of human style added, without which the
    pencil's style is all there is to learn.

    Args:
        logits: float32 (n,), of d.
        side: int (n,), of the sides above.
        weights: float32 (n,), by `side_weights` over the whole training set.
    """
    human, machine, wrong = _risks(logits, side, weights)
    return human[0] / 2 + machine[1] / 4 + wrong[1] / 4


def graded_risk(logits: Tensor, side: Tensor, weights: Tensor, iou: Tensor) -> Tensor:
    """`pn_risk` with half their true IoU as the soft target of experts' masks, instead of 0.

    Labelled pairs tell how good an expert's mask is; to call all of them equally bad teaches the pencil, not the mask.
    A perfect one, of target 1/2, may be a human mask as well as not.

    Args:
        logits: float32 (n,), of d.
        side: int (n,), of the sides above.
        weights: float32 (n,), by `side_weights` over the whole training set.
        iou: float32 (n,), true IoU.
    """
    human, _, wrong = _risks(logits, side, weights)
    soft = F.binary_cross_entropy_with_logits(logits, iou / 2, weights * (side == MACHINE_SIDE))
    return human[0] / 2 + soft / 4 + wrong[1] / 4


def nnpu_risk(logits: Tensor, side: Tensor, weights: Tensor, prior: float) -> Tensor:
    """Non-negative risk of learning from positive and unlabelled examples, plus half the risk on known wrong ones.

    Equation 6 of Kiryo et al. (NeurIPS 2017, arXiv 1703.00593) with the logistic loss: prior·R(human, +) +
    max(0, R(experts, -) - prior·R(human, -)). Experts' masks are unlabelled, since some are as good as human ones.

    Args:
        logits: float32 (n,), of d.
        side: int (n,), of the sides above.
        weights: float32 (n,), by `side_weights` over the whole training set.
        prior: share of experts' masks that are as good as human ones, in (0, 1).
    """
    human, machine, wrong = _risks(logits, side, weights)
    return prior * human[0] + (machine[1] - prior * human[1]).clamp(min=0) + wrong[1] / 2


def _risks(logits: Tensor, side: Tensor, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each side the logistic risk of taking its examples for positive, and for negative."""
    losses = F.softplus(-logits) * weights, F.softplus(logits) * weights
    sides = (HUMAN_SIDE, MACHINE_SIDE, WRONG_SIDE)
    return [tuple((loss * (side == value)).mean() for loss in losses) for value in sides]  # type: ignore[misc]
