"""DWSL weights: how much a mask counts in training, from the discriminator's d."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from stages.base import Config


class WeightConfig(Config):
    """The monotone function f of Discriminator Weighted Supervised Learning (arXiv 2405.19783, section 4).

    `clip`: clip(d, low, high), with 0.1 and 0.9 in the authors' code (github.com/2toinf/IVM, history of
    model/IVM.py); `affine`: 0.2 + 0.8 d, the other variant in that history; `identity`: d itself.
    """

    rule: Literal["clip", "affine", "identity"] = "clip"
    low: float = Field(0.1, ge=0, le=1)
    high: float = Field(0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "WeightConfig":
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not exceed high ({self.high})")
        return self

    def weight(self, d: float) -> float:
        """f(d) in float32 arithmetic from the float32 that the table stores, so both columns agree bit by bit."""
        stored = np.float32(d)
        if self.rule == "clip":
            return float(np.clip(stored, np.float32(self.low), np.float32(self.high)))
        if self.rule == "affine":
            return float(np.float32(0.2) + np.float32(0.8) * stored)
        return float(stored)
