"""What an expert is: one grounding model that turns images and what is asked of them into candidate masks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Request:
    """What to find in an image for one pair: the instruction as given and the phrases taken from it."""

    instruction: str
    phrases: list[str]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image, uint8 RGB (height, width, 3) with EXIF orientation applied, and all that is asked of it."""

    image: np.ndarray
    requests: Sequence[Request]


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
    box: Sequence[float] | None = None


class ExpertOptions(BaseModel):
    """Base of an expert's options in a profile: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    whereabouts: ClassVar[frozenset[str]] = frozenset()
    """Fields that say where something is and not what it is; they may change without making candidates stale."""

    def parts(self) -> Iterator["ExpertOptions"]:
        """These options and those nested in them, such as a detector's segmenter's."""
        yield self
        for _, value in self:
            if isinstance(value, ExpertOptions):
                yield from value.parts()

    def identity(self) -> dict[str, Any]:
        """The options that determine what the expert finds, as JSON values."""
        nested = {name: value.identity() for name, value in self if isinstance(value, ExpertOptions)}
        plain = self.model_dump(mode="json", exclude={*nested, *self.whereabouts})
        return plain | nested

    def pinned(self) -> Self:
        """These options with whatever may come to mean something else later, as a branch's name, made definite.

        Raises:
            InputError: something they name does not exist.
        """
        nested = {name: value.pinned() for name, value in self if isinstance(value, ExpertOptions)}
        return self.model_copy(update=nested)


class Placement(BaseModel):
    """How a worker runs its expert, which does not change what it finds: `device` auto (a GPU where the pool has
    one), cpu, cuda or mps; `batch` images, or image-phrase pairs, in one forward pass at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = Field("auto", pattern="^(auto|cpu|cuda|mps)$")
    batch: int = Field(4, ge=1)


class OutOfMemory(Exception):
    """A forward pass of one single item does not fit into the device's memory."""


class DeviceLost(BaseException):
    """The device is unusable for the rest of this process, which has to end for another to take its place.

    As with `SystemExit`, a handler for the errors of one image must not catch it.
    """


class Expert(ABC):
    """Base of all experts. A subclass is one file `experts/<name>.py`; the registry finds it by that name.

    Constructed once per worker process, where it loads its weights.
    """

    summary: ClassVar[str]
    """One line for `ivm-mix experts`: what it finds and by which method."""
    limits: ClassVar[str]
    """One line for `ivm-mix experts`: where the method does not reach."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules it imports beyond numpy and OpenCV, as import names."""
    device: ClassVar[str] = "cpu"
    Options: ClassVar[type[ExpertOptions]] = ExpertOptions

    def __init__(self, options: ExpertOptions, placement: Placement | None = None) -> None:
        self.options = options
        self.placement = placement or Placement()

    @classmethod
    @abstractmethod
    def version(cls, options: ExpertOptions) -> str:
        """Model id and revision or weights hash, told without loading the weights.

        A new value makes the expert's committed candidates stale.

        Raises:
            InputError: the weights are not there or are not what they should be.
        """

    @abstractmethod
    def ground(self, image: np.ndarray, requests: Sequence[Request]) -> list[list[Candidate]]:
        """Candidates for each request, best first; an empty list where the method does not apply.

        `image` is uint8 RGB (height, width, 3), EXIF orientation applied. Whatever depends on the image alone is
        computed once per call. Deterministic: the same image and requests give the same candidates.
        """

    @property
    def images_at_once(self) -> int:
        """How many images `ground_batch` makes good use of."""
        return 1

    def ground_batch(self, scenes: Sequence[Scene]) -> list[list[list[Candidate]]]:
        """What `ground` gives, for each of several images.

        Raises:
            OutOfMemory: not even one item at a time fits.
            DeviceLost: this process cannot go on.
        """
        return [self.ground(scene.image, scene.requests) for scene in scenes]


def unique_texts(requests: Sequence[Request], of: str) -> list[str]:
    """The different phrases (`of="phrases"`) or instructions (`of="instruction"`) of an image's requests, in order."""
    if of == "instruction":
        return list(dict.fromkeys(request.instruction for request in requests))
    return list(dict.fromkeys(phrase for request in requests for phrase in request.phrases))


def per_request(
    requests: Sequence[Request], of: str, found: Mapping[str, Sequence[Candidate]]
) -> list[list[Candidate]]:
    """Candidates found for each different text, handed to every request that asked for it, best first."""
    answers = []
    for request in requests:
        texts = [request.instruction] if of == "instruction" else dict.fromkeys(request.phrases)
        candidates = [candidate for text in texts for candidate in found[text]]
        answers.append(sorted(candidates, key=lambda candidate: -candidate.score))
    return answers
