"""The main job: plan, waves over the shards, discriminator, labels, summary."""

import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, replace

from manifests.manifest import Manifest, load_manifest
from pipeline.config import Profile, load_profile, pin_experts
from pipeline.errors import InputError, RoomLost, RunFailed
from pipeline.given_discriminator import GivenDiscriminator
from pipeline.lock import RunLock
from pipeline.parts import AllParts, RunSpec
from pipeline.plan import Plan, committed_plan, make_plan, plan_source
from pipeline.progress import progress
from pipeline.reconcile import reconcile, run_description
from pipeline.store import DISCRIMINATOR, RunStore, marker_file
from pipeline.summary import excessive_rejects, print_summary
from pipeline.units import LABELS, SAMPLES, SCORES, Unit, units_of

DONE, TOO_MANY_REJECTS = 0, 1


@dataclass(frozen=True)
class Job:
    """One `annotate` command, its flags as given."""

    dataset: str
    profile: str = "embedded"
    output: str | None = None
    limit: int | None = None
    address: str | None = None
    update: bool = False
    fresh: bool = False
    retry_rejects: bool = False
    dry_run: bool = False
    discriminator: str | None = None


def annotate(job: Job) -> int:
    """Runs every unit that has work left; returns the exit status, 0 or 1.

    Raises:
        InputError: bad manifest, profile, OUTPUT or discriminator, or committed work that would become stale.
    """
    manifest, profile = load_manifest(job.dataset), pin_experts(load_profile(job.profile))
    if job.limit is not None and job.limit < 1:
        raise InputError(f"--limit {job.limit}: give a number of pairs, 1 or more")
    store = RunStore(job.output or f"runs/{manifest.name}")
    given = GivenDiscriminator.read(job.discriminator, store.output) if job.discriminator else None
    if given:
        profile = profile.model_copy(update={"discriminator_from": given.origin})
    if job.dry_run:
        return estimate(store, manifest, profile, job)
    store.check_writable()
    with RunLock(store), tempfile.TemporaryDirectory(prefix="ivm-mix-plan-") as folder:
        units = units_of(profile, manifest)
        draft = RunStore(folder)
        # Planned first: a manifest that cannot be read must not cost the old run.
        plan = current_plan(store, manifest, profile, job, draft)
        if job.fresh:
            store.clear()
        description = run_description(manifest, profile, job.limit, units)
        reconcile(store, draft, plan, units, description, job.update)
        spec = RunSpec(store.output, manifest, profile, plan)
        if given:
            given.commit(spec, store)
        parts = run(spec, store, job)
        print_summary(parts, store)
    excess = excessive_rejects(parts)
    for line in excess:
        print(line, file=sys.stderr)
    return TOO_MANY_REJECTS if excess else DONE


def estimate(store: RunStore, manifest: Manifest, profile: Profile, job: Job) -> int:
    """Prints what the language model would cost; returns 0, and writes nothing."""
    from pipeline.estimate import print_estimate

    with tempfile.TemporaryDirectory(prefix="ivm-mix-plan-") as folder:
        draft = RunStore(folder)
        plan = current_plan(store, manifest, profile, job, draft)
        parts = AllParts(RunSpec(store.output, manifest, profile, plan), store)
        shards = list(range(len(plan.shards))) if job.fresh else parts.pending(parts.units[SAMPLES])
        print_estimate(parts.spec, store, draft, shards)
    return DONE


def current_plan(store: RunStore, manifest: Manifest, profile: Profile, job: Job, draft: RunStore) -> Plan:
    """The run's own plan if all it was made from is unchanged, else a new one, its files in `draft`."""
    plan = None if job.fresh else committed_plan(store)
    source = plan_source(manifest, profile.shard_pairs, job.limit)
    whole = plan and {f"plan/{name}" for name in store.part_files("plan")} >= set(plan.files)
    if plan and whole and source and plan.source == source:
        return plan
    return make_plan(manifest, profile.shard_pairs, job.limit, draft, source)


def run(spec: RunSpec, store: RunStore, job: Job) -> AllParts:
    """Brings every unit of the run up to date, starting Ray only if there is work; returns the parts as they are then.

    Raises:
        InputError: the profile asks for more than this machine has, or there is no cluster at the address.
        RunFailed: a worker or the storage failed for good.
    """
    parts = AllParts(spec, store)
    units = list(parts.units.values())
    grounding = [unit for unit in units if unit.name == SAMPLES or unit.expert]
    labelling = [unit for unit in units if unit.name in (SAMPLES, SCORES, LABELS)]
    retried = [unit for unit in units if job.retry_rejects and parts.has_rejects(unit)]
    if not retried and not work_left(parts):
        return parts
    # Imported here because Ray takes seconds, which a finished run need not wait for.
    from pipeline.engine import ray_session, train_on_ray
    from pipeline.llm_session import check_endpoint, llm_session

    instructing = parts.units[SAMPLES] in retried or bool(parts.pending(parts.units[SAMPLES]))
    if instructing and spec.profile.instruct.llm:
        check_endpoint(spec.profile.instruct.llm)
    with (
        ray_session(job.address, [grounding, [parts.units[DISCRIMINATOR]], labelling]),
        llm_session(spec, store) if instructing else nullcontext(spec) as spec,
    ):
        shards = parts.pending(parts.units[SAMPLES])
        if shards and spec.profile.instruct.llm:
            from pipeline.llm_prepass import ask_in_batches

            ask_in_batches(spec, store, parts.units[SAMPLES], shards)
        if retried:
            _waves(replace(spec, retry=frozenset(unit.name for unit in grounding)), store, "retry", grounding)
            learned = parts.markers[DISCRIMINATOR].get(0)
            if learned and not learned.rows:
                # The rejects may have been the human masks that it lacked.
                store.delete([marker_file(DISCRIMINATOR, 0)])
        parts = _waves(spec, store, "ground", grounding)
        if parts.pending(parts.units[DISCRIMINATOR]):
            print("training the discriminator …", file=sys.stderr, flush=True)
            train_on_ray(spec, parts.units[DISCRIMINATOR])
        scoring = frozenset(unit.name for unit in retried) & {SCORES, LABELS}
        parts = _waves(replace(spec, retry=scoring), store, "score", labelling)
    if left := work_left(AllParts(spec, store)):
        raise RunFailed(f"work is left in {', '.join(left)}")
    return parts


def work_left(parts: AllParts) -> list[str]:
    """Names of the units that are not up to date."""
    return [unit.name for unit in parts.units.values() if parts.pending(unit)]


def _waves(spec: RunSpec, store: RunStore, name: str, units: list[Unit], wait_s: float | None = None) -> AllParts:
    """Does what is left of the units, as many of them at once as fit on the cluster; `wait_s` is `run_wave`'s."""
    from pipeline.engine import plan_waves

    parts = AllParts(spec, store)
    # Samples head every wave; an expert with nothing left to do is not even started.
    working = [unit for unit in units if unit.name == SAMPLES or parts.pending(unit)]
    waves = plan_waves(working, grows=wait_s is None)
    for k, wave in enumerate(waves):
        title = f"{name} {k + 1}/{len(waves)}" if len(waves) > 1 else name
        try:
            parts = _wave(spec, store, title, wave, wait_s)
        except RoomLost as error:
            print(f"ivm-mix: {error}; going on with what is there", file=sys.stderr, flush=True)
            return _waves(spec, store, name, units, wait_s=1.0)
    return parts


def _wave(spec: RunSpec, store: RunStore, title: str, units: list[Unit], wait_s: float | None) -> AllParts:
    from pipeline.engine import run_wave
    from pipeline.llm_session import money_spent

    parts = AllParts(spec, store)
    shards = sorted({shard for unit in units for shard in parts.pending(unit)})
    if not shards:
        return parts
    pairs, rejects = sum(spec.plan.shards[shard].pairs for shard in shards), 0
    with progress(title, "pairs", total=pairs, delay=0) as bar:
        for shard, rejected in run_wave(spec, units, shards, wait_s):
            rejects += rejected
            spent = money_spent(spec)
            bar.set_postfix({"rejects": rejects} | ({} if spent is None else {"spent": f"{spent:.2f}"}), refresh=False)
            bar.update(spec.plan.shards[shard].pairs)
    return AllParts(spec, store)
