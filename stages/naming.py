"""Names what a mask shows: log probabilities of nouns from a mask's figures, learned in closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

_LEAST = 5
"""Examples of a noun under which it is not learned."""
_SHRINKAGE = 0.5
_CERTAINTY = 0.15
"""Scale of the log odds: figures are many, and far from normal, so that the model is far too sure of itself."""
_FAR = 4.0
UNKNOWN = -3.0
"""Log probability given to a noun that was not learned."""


@dataclass(frozen=True, eq=False)
class Namer:
    """Linear discriminant analysis with a shrunk covariance (Friedman, JASA 1989), one class per noun.

    On a few hundred masks it names far better than a network can learn to, and in a fraction of a second.
    `nouns` (v,) sorted; `mean` and `spread` float32 (f,); `weights` float32 (f, v); `bias` float32 (v,).
    """

    nouns: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def learn(cls, figures: np.ndarray, nouns: Sequence[str]) -> Self:
        """Learns from figures, float32 (n, f), of n >= 1 masks and the noun of each; "" and rare ones are left out."""
        of = np.array(nouns, dtype=object)
        mean, spread = figures.mean(axis=0), figures.std(axis=0) + 1e-3
        scaled = ((figures - mean) / spread).clip(-_FAR, _FAR)
        known = tuple(sorted(noun for noun in {*nouns} - {""} if (of == noun).sum() >= _LEAST))
        size = figures.shape[1]
        if not known:
            return cls((), mean, spread, np.zeros((size, 0), np.float32), np.zeros(0, np.float32))
        means = np.stack([scaled[of == noun].mean(axis=0) for noun in known])
        within = np.concatenate([scaled[of == noun] - means[k] for k, noun in enumerate(known)])
        covariance = within.T @ within / len(within)
        level = max(float(np.trace(covariance)) / size, 1e-6)
        covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(size, dtype=np.float32)
        weights = np.linalg.solve(covariance, means.T)
        return cls(known, mean, spread, weights.astype(np.float32), (-0.5 * (means.T * weights).sum(axis=0)))

    def names(self, figures: np.ndarray) -> np.ndarray:
        """Log probabilities of the nouns, float32 (n, v), of masks' figures (n, f)."""
        scaled = ((figures - self.mean) / self.spread).clip(-_FAR, _FAR)
        odds = _CERTAINTY * (scaled @ self.weights + self.bias)
        if not self.nouns:
            return odds
        top = odds.max(axis=1, keepdims=True)
        return odds - top - np.log(np.exp(odds - top).sum(axis=1, keepdims=True))

    def of(self, noun: str, names: np.ndarray) -> np.ndarray | None:
        """The column of a noun in what `names` gave; None if it was not learned."""
        return names[:, self.nouns.index(noun)] if noun in self.nouns else None
