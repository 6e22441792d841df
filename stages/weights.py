"""DWSL weights: how much a mask counts in training, from the discriminator's d or its predicted quality."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from stages.base import Config

Rule = Literal["clip", "affine", "identity", "posterior", "odds", "quality"]


class WeightConfig(Config):
    """The function f of Discriminator Weighted Supervised Learning (arXiv 2405.19783, section 4), monotone in d.

    `clip`: clip(d, low, high), with 0.1 and 0.9 in the authors' code (github.com/2toinf/IVM, history of model/LISA.py);
    `affine`: 0.2 + 0.8 d, in [0.2, 1], which that code's model/IVM.py has in place of it (commit 94e7e9d);
    `identity`: d itself;
    `posterior`: min(1, eta·d / (1 - d)), the P(human quality) of a machine mask for which `eta` is the share of machine
    masks as good as human ones. By Bayes' rule, where d comes from training with both sides at equal weight, machine
    masks as negatives (Elkan and Noto, KDD 2008, weigh unlabelled examples so);
    `odds`: d / (1 - d) where d is at least 0.5, else 0, as Discriminator-Weighted Behavioral Cloning (arXiv 2207.10050)
    weighs the examples that are not an expert's: 1/(1 - d) - 1 in algos/DWBC.py of github.com/ryanxhr/DWBC. It has no
    bound, so d is cut at `high` first, as that code does at 0.9: weights are 0 or in [1, 9];
    `quality`: the predicted IoU with a human mask, whatever d is.
    """

    rule: Rule = "clip"
    low: float = Field(0.1, ge=0, le=1)
    high: float = Field(0.9, ge=0, le=1)
    eta: float = Field(0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _bounded(self) -> "WeightConfig":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        if self.rule == "odds" and not 0.5 <= self.high < 1:
            raise ValueError(f"rule odds needs high in [0.5, 1), and it is {self.high}: d / (1 - d) has no bound")
        return self

    def weight(self, d: float, quality: float) -> float:
        """f in float32 arithmetic from the float32 that the table stores, so its columns agree bit by bit.

        Args:
            d: P(human quality) in [0, 1].
            quality: predicted IoU with a human mask in [0, 1].

        Returns:
            A finite weight: at least 0, and at most 1 but for the rule `odds`.
        """
        stored, one = np.float32(d), np.float32(1)
        match self.rule:
            case "clip":
                return float(np.clip(stored, np.float32(self.low), np.float32(self.high)))
            case "affine":
                return float(np.float32(0.2) + np.float32(0.8) * stored)
            case "posterior":
                scaled = np.float32(self.eta) * stored
                return 1.0 if scaled >= one - stored else float(scaled / (one - stored))
            case "odds":
                cut = min(stored, np.float32(self.high))
                return float(cut / (one - cut)) if cut >= 0.5 else 0.0
            case "quality":
                return float(np.float32(quality))
        return float(stored)
