"""Consensus of masks by expectation maximisation: who is reliable is estimated along with what is there."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.masks import mask_box

ConsensusRule = Literal["em", "staple"]

_MARGIN = 0.5
"""Background around the masks that counts, as a share of the sides of their common box. None, and small objects turn
into their reverse; the whole image, and every rater is as good as the other, being right on almost all of it."""
_ITERATIONS, _TOLERANCE = 100, 1e-6


def consensus(masks: Sequence[np.ndarray], rule: ConsensusRule) -> np.ndarray:
    """P(target) of every pixel, float32 (height, width), from what raters of unknown reliability drew.

    `em`: Dawid and Skene (Applied Statistics 28, 1979), binary, from the share of votes, the target's share learned;
    `staple`: Warfield, Zou and Wells (IEEE TMI 23, 2004) without its Markov field, the share of votes as fixed prior.
    Both know no more than how raters agree, and where masks fill most of what is looked at they may settle on the
    reverse. Hence background around the masks counts too; and where the raters would still be no better than chance, or
    pixels that nobody drew belong to the target, the share of votes stands.

    Args:
        masks: bool (height, width), one per rater, at least one.
    """
    heatmap = np.zeros(masks[0].shape, dtype=np.float32)
    drawn = np.logical_or.reduce(masks)
    if not drawn.any():
        return heatmap
    window = _window(drawn)
    stack = np.stack([mask[window].ravel() for mask in masks])
    # A dozen raters draw some dozens of patterns on a million pixels, and pixels of one pattern share one posterior.
    codes = np.zeros(stack.shape[1], dtype=np.int64)
    for row in stack:
        codes, _ = pd.factorize(2 * codes + row)
    votes = np.zeros((len(stack), codes.max() + 1), dtype=np.float64)
    votes[:, codes] = stack
    heatmap[window] = _posterior(votes, np.bincount(codes), rule)[codes].reshape(drawn[window].shape)
    return heatmap


def _window(drawn: np.ndarray) -> tuple[slice, slice]:
    x1, y1, x2, y2 = (int(side) for side in mask_box(drawn))
    across, down = (1 + int(_MARGIN * side) for side in (x2 - x1, y2 - y1))
    return np.s_[max(0, y1 - down) : y2 + down, max(0, x1 - across) : x2 + across]


def _posterior(votes: np.ndarray, counts: np.ndarray, rule: ConsensusRule) -> np.ndarray:
    """P(target) of each pattern (patterns,) from votes (raters, patterns) that are 0 or 1, seen `counts` times."""
    share = votes.mean(axis=0)
    prior = float(np.average(share, weights=counts))
    target = share
    for _ in range(_ITERATIONS):
        inside, outside = counts * target, counts * (1 - target)
        # No pixel on one side: nothing is learned there, and nothing is to be divided by.
        sensitivity = (votes @ inside) / max(inside.sum(), 1e-12)
        specificity = ((1 - votes) @ outside) / max(outside.sum(), 1e-12)
        if rule == "em":
            prior = float(np.average(target, weights=counts))
        before, target = target, _expect(votes, sensitivity, specificity, prior)
        if np.abs(target - before).max() < _TOLERANCE:
            break
    reversed_ = (sensitivity + specificity).mean() <= 1 or (target[share == 0] >= 0.5).any()
    return share if reversed_ else target


def _expect(votes: np.ndarray, sensitivity: np.ndarray, specificity: np.ndarray, prior: float) -> np.ndarray:
    sensitivity, specificity, share = (np.clip(p, 1e-9, 1 - 1e-9) for p in (sensitivity, specificity, prior))
    odds = np.log(share / (1 - share))
    odds = odds + np.log(sensitivity / (1 - specificity)) @ votes
    odds = odds + np.log((1 - sensitivity) / specificity) @ (1 - votes)
    return 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
