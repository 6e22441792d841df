"""An expert that raises on whatever it is given."""

from collections.abc import Sequence

import numpy as np

from experts.base import Candidate, Expert, ExpertOptions, Request


class BrokenExpert(Expert):
    summary = "nothing"
    limits = "raises"

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return "1"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        raise ZeroDivisionError(f"{image.shape[1]}x{image.shape[0]}")
