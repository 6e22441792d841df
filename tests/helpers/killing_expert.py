"""An expert that kills its own process on an image whose first pixel is magenta, as a faulty native library would."""

import os
import signal
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from experts.base import Candidate, Expert, ExpertOptions, Request

DEADLY = (255, 0, 255)


class KillingExpert(Expert):
    summary: ClassVar[str] = "the upper left quarter"
    limits: ClassVar[str] = "dies"

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return "1"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        if tuple(image[0, 0]) == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        mask = np.zeros(image.shape[:2], dtype=bool)
        mask[: image.shape[0] // 2, : image.shape[1] // 2] = True
        return [[Candidate(mask, 0.5, request.phrases[0])] for request in requests]
