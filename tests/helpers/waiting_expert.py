"""An expert that waits, on an image whose first pixel is magenta, until a file is there."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experts.base import Candidate, Expert, ExpertOptions, Request

GATE = "WAITING_EXPERT_GATE"
"""The environment variable that holds the file's path."""


class WaitingExpert(Expert):
    summary = "what is bright"
    limits = "waits"

    @classmethod
    def version(cls, options: ExpertOptions) -> str:
        return "1"

    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        while tuple(image[0, 0]) == (255, 0, 255) and not Path(os.environ[GATE]).exists():
            time.sleep(0.1)
        mask = image[..., 0] > 128
        return [[Candidate(mask, 0.5, request.phrases[0])] for request in requests]
