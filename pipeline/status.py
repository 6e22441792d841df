"""`ivm-mix status`: what a run holds and whether it is live."""

from pydantic import ValidationError

from manifests.manifest import Manifest
from pipeline.config import Profile
from pipeline.errors import InputError, validation_problem
from pipeline.lock import live_holder
from pipeline.parts import AllParts, RunSpec
from pipeline.plan import committed_plan
from pipeline.store import RUN_FILE, RunStore
from pipeline.summary import print_summary


def open_run(run: str) -> tuple[RunSpec, RunStore]:
    """A run from its files alone.

    Raises:
        InputError: there is no run, or one of another version of this package.
    """
    store = RunStore(run)
    description, plan = store.read_json(RUN_FILE), committed_plan(store)
    if description is None or plan is None:
        raise InputError(f"{run}: no run here ({RUN_FILE} or its plan is missing); give the OUTPUT of a run")
    try:
        manifest = Manifest.model_validate(description["manifest"])
        profile = Profile.model_validate(description["profile"])
    except ValidationError as error:
        raise InputError(f"{run}/{RUN_FILE}: {validation_problem(error)}; the run is of another version") from error
    return RunSpec(store.output, manifest, profile, plan), store


def print_status(run: str) -> None:
    """Prints a run's summary and who is working on it, if anybody is."""
    spec, store = open_run(run)
    print_summary(AllParts(spec, store), store)
    holder = live_holder(store)
    print(f"live: pid {holder['pid']} on {holder['host']}" if holder else "not running")
