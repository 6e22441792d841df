"""What an expert is: one grounding model that turns an image and its phrases into candidate masks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Request:
    """What to find in an image for one pair: the instruction as given and the phrases taken from it."""

    instruction: str
    phrases: list[str]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One mask an expert proposes.

    `mask` bool (height, width) at the image's size; `score` the expert's own confidence in [0, 1], comparable
    across images; `phrase` what it answers, one of the request's phrases or the instruction; `heatmap` float32
    (height, width) in [0, 1] from soft experts; `box` x1, y1, x2, y2 in pixels where the expert has one of its
    own, else the stage takes the mask's.
    """

    mask: np.ndarray
    score: float
    phrase: str
    heatmap: np.ndarray | None = None
    box: list[float] | None = field(default=None)


class ExpertOptions(BaseModel):
    """Base of an expert's options in a profile: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Expert(ABC):
    """Base of all experts. A subclass is one file `experts/<name>.py`; the registry finds it by that name.

    Constructed once per worker process, where it loads its weights; `ground` is then called once per image.
    """

    summary: ClassVar[str]
    """One line for `ivm-mix experts`: what it finds and by which method."""
    limits: ClassVar[str]
    """One line for `ivm-mix experts`: where the method does not reach."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules it imports beyond numpy and OpenCV, as import names."""
    device: ClassVar[str] = "cpu"
    Options: ClassVar[type[ExpertOptions]] = ExpertOptions

    def __init__(self, options: ExpertOptions) -> None:
        self.options = options

    @classmethod
    @abstractmethod
    def version(cls, options: ExpertOptions) -> str:
        """Model id and revision or weights hash, told without loading the weights.

        A new value makes the expert's committed candidates stale.
        """

    @abstractmethod
    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        """Candidates for each request, best first; an empty list where the method does not apply.

        `image` is uint8 RGB (height, width, 3), EXIF orientation applied. Whatever depends on the image alone is
        computed once per call. Deterministic: the same image and requests give the same candidates.
        """
