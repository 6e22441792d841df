"""An expert that raises on an image whose first pixel is magenta."""

from collections.abc import Sequence

import numpy as np

from experts.base import Candidate, Expert, ExpertOptions, Request
from tests.helpers.killing_expert import DEADLY


class RaisingExpert(Expert):
    summary = "the whole upper half"
    limits = "raises"

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return "1"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        if tuple(image[0, 0]) == DEADLY:
            raise ZeroDivisionError("magenta")
        mask = np.zeros(image.shape[:2], dtype=bool)
        mask[: image.shape[0] // 2] = True
        return [[Candidate(mask, 0.5, request.phrases[0])] for request in requests]
