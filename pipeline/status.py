"""`ivm-mix status` and `ivm-mix experts`: what a run holds, and which experts there are."""

import pandas as pd
from pydantic import ValidationError

from experts.registry import expert_class, expert_names, missing
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


def print_experts() -> None:
    """Prints name, what it does, device, needs, and whether it is available, for each expert."""
    rows = []
    for name in expert_names():
        expert = expert_class(name)
        absent = missing(expert)
        rows.append(
            {
                "expert": name,
                "device": expert.device,
                "needs": ", ".join(expert.needs) or "-",
                "available": f"no: {', '.join(absent)} missing" if absent else "yes",
                "what it does": expert.summary,
                "limits": expert.limits,
            }
        )
    print(pd.DataFrame(rows).drop(columns=["what it does", "limits"]).to_string(index=False, justify="left"))
    for row in rows:
        print(f"\n{row['expert']}: {row['what it does']}\n  limits: {row['limits']}")
