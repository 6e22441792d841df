"""`ivm-mix experts`: which experts there are, and with --check whether those of a profile work on this machine."""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict

import pandas as pd

from experts.base import DeviceLost, Expert
from experts.registry import expert_class, expert_names, missing, segmenter_class, segmenter_names
from experts.segmenter import Segmenter
from pipeline.config import Profile, pin_experts
from pipeline.errors import InputError
from pipeline.photo_check import Checked, run_on_photo


def print_experts() -> None:
    """Prints name, what it does, device, needs, and whether it is available, for each expert and segmenter."""
    experts = {name: expert_class(name) for name in expert_names()}
    segmenters = {name: segmenter_class(name) for name in segmenter_names()}
    rows = [_availability(name, found) | {"device": found.device} for name, found in experts.items()]
    print(pd.DataFrame(rows).to_string(index=False, justify="left"))
    for name, expert in experts.items():
        print(f"\n{name}: {expert.summary}\n  limits: {expert.limits}")
    if segmenters:
        print("\nSegmenters, which turn boxes and points of the experts into masks (option `segmenter` of an expert):")
        rows = [_availability(name, found) | {"what it does": found.summary} for name, found in segmenters.items()]
        print(pd.DataFrame(rows).to_string(index=False, justify="left"))


def _availability(name: str, found: type[Expert] | type[Segmenter]) -> dict[str, str]:
    absent = missing(found)
    return {
        "name": name,
        "needs": ", ".join(found.needs) or "-",
        "available": f"no: {', '.join(absent)} missing" if absent else "yes",
    }


def check_experts(profile: Profile) -> int:
    """Loads each expert of the profile and runs it on one photo, in a process of its own.

    Prints a table of the experts that work and a line for each that does not; returns how many do not.
    """
    works, problems = [], []
    for name in profile.experts:
        one = profile.model_copy(update={"experts": {name: profile.experts[name]}})
        try:
            works.append(asdict(_in_own_process(pin_experts(one), name)))
        except InputError as error:
            problems.append(str(error))
    if works:
        print(pd.DataFrame(works).to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    for problem in problems:
        print(f"ivm-mix: {problem}", file=sys.stderr)
    return len(problems)


def _in_own_process(profile: Profile, name: str) -> Checked:
    # Spawned and not forked: a GPU cannot be used in a forked process, and memory peaks must not add up.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(run_on_photo, profile, name).result()
        except BrokenProcessPool as error:
            raise InputError(f"expert '{name}': its process died, as for lack of memory") from error
        except InputError:
            raise
        except DeviceLost as error:
            raise InputError(f"expert '{name}': its GPU failed: {error}") from error
        # Whatever an expert raises on a plain photo is what this command is there to tell.
        except Exception as error:
            raise InputError(f"expert '{name}': {type(error).__name__}: {error}") from error
