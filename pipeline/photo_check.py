"""One expert on one photo, in a process that holds nothing else: how `ivm-mix experts --check` measures it."""

import resource
import sys
import time
from dataclasses import dataclass

import skimage.data

from experts.base import Request, Scene
from pipeline.config import Profile, load_expert

ASKED = Request("Which of her clothes would she wear in space?", ["orange suit", "the woman's face"])
"""What is asked of scikit-image's photo of the astronaut Eileen Collins, 512x512."""
_RUNS = 3


@dataclass(frozen=True)
class Checked:
    """Figures of one expert: seconds to load it (without imports) and for an image once warm, the peak of its
    process's memory and of its GPU's in GiB, and how many candidates it had."""

    expert: str
    load_s: float
    image_s: float
    memory_gib: float
    gpu_gib: float
    candidates: int


def run_on_photo(profile: Profile, name: str) -> Checked:
    """Loads one expert and grounds a batch as large as it takes at once, several times over."""
    started = time.perf_counter()
    expert = load_expert(profile, name)
    loaded = time.perf_counter()
    scenes = [Scene(skimage.data.astronaut(), [ASKED])] * expert.images_at_once
    seconds = []
    for _ in range(_RUNS):
        before = time.perf_counter()
        found = expert.ground_batch(scenes)
        seconds.append((time.perf_counter() - before) / len(scenes))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kibibytes = peak if sys.platform != "darwin" else peak / 1024
    return Checked(name, loaded - started, min(seconds), kibibytes / 2**20, _gpu_peak(), len(found[0][0]))


def _gpu_peak() -> float:
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() / 2**30 if torch and torch.cuda.is_available() else 0.0
