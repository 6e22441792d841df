"""An expert that finds its GPU lost on an image whose first pixel is magenta."""

from collections.abc import Sequence

import numpy as np

from experts.base import Candidate, DeviceLost, Request
from tests.helpers.killing_expert import DEADLY, KillingExpert


class LosingExpert(KillingExpert):
    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        if tuple(image[0, 0]) == DEADLY:
            raise DeviceLost("an illegal memory access was encountered")
        return super().ground(image, requests)
