"""`ivm-mix submit`: runs `annotate` as a Ray job on a cluster, shows its log here and ends with its exit status."""

import asyncio
import hashlib
import logging
import os
import re
import shlex
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from pipeline.annotate import Job
from pipeline.errors import InputError, RunFailed
from pipeline.upload import Shared, Upload, checksum, write_upload

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

REACH_SECONDS = 10
"""How long the head may take to answer at all."""
LOST_SECONDS = 120
"""How long a head that no longer answers is waited for."""
STOP_SECONDS = 30
"""What a job that is told to stop has before it is killed."""
INSTALL_SECONDS = 3600

STOPPED = 130
_KILLED = 128
"""A shell's exit status is over this where a signal ended the command."""
_OUTPUT, _WORK = "ivm-mix-output", "ivm-mix-work"
"""What a job's metadata says: where it writes, and a checksum of all that it was asked."""
_SECRET = re.compile(r"://[^/?#]*:[^/?#]*@|[?&][^=&]*(?:key|secret|token|password)[^=&]*=", re.IGNORECASE)


@dataclass(frozen=True)
class Submission:
    """One `submit` command. `job.address` is the head's, `http://head:8265`; `env` names variables that the job gets
    from here; `shared` are folders that every node has; `install` lets Ray install what the image lacks; `stop` ends
    the job on OUTPUT instead."""

    job: Job
    env: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    install: bool = False
    stop: bool = False


def submit(submission: Submission) -> int:
    """Starts the job, or joins it where it runs already, and follows it to its end; returns its exit status.

    130 if the job was stopped, or if Ctrl-C left it running.

    Raises:
        InputError: what the cluster could not use, another job on this OUTPUT, no head at ADDRESS or a wrong token.
        RunFailed: the head is gone, or the job failed without an exit status of its own.
    """
    shared = Shared.of(list(submission.shared))
    output, discriminator = _output(submission.job, shared), submission.job.discriminator
    if discriminator:
        discriminator = shared.place("DISCRIMINATOR", discriminator)
    job = replace(submission.job, output=output, discriminator=discriminator)
    variables = {name: _variable(name) for name in submission.env}
    client = connect(job.address)
    if submission.stop:
        return _stop(client, output)
    with tempfile.TemporaryDirectory(prefix="ivm-mix-job-") as path:
        folder = Path(path)
        upload = write_upload(folder, job.dataset, job.profile, shared)
        variables |= {key: os.environ[key] for key in upload.keys if os.environ.get(key)}
        command = shlex.join(_command(job, upload))
        asked = f"{command} {sorted(variables)} {submission.install} {checksum(folder)}"
        work = hashlib.sha256(asked.encode()).hexdigest()
        environment = _environment(folder, variables, submission.install)
        name = start_or_join(client, upload.name, output, work, command, environment)
    try:
        return _end(_follow(client, name), output)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        _say(f"job {name} goes on; say the same again to watch it, with --stop (STOP=1) to stop it")
        return STOPPED


def connect(address: str | None) -> "JobSubmissionClient":
    """A client of the job server at `address`.

    Raises:
        InputError: no address or a bad one, nobody there, no Ray dashboard, or it refuses the token.
    """
    if not address:
        raise InputError("ADDRESS is missing: give the dashboard of the cluster's head, as ADDRESS=http://head:8265")
    if not re.fullmatch(r"https?://[^/@?#\s]+/?", address):
        raise InputError(f"ADDRESS '{address}': give the dashboard of the cluster's head, as http://head:8265")
    _check_reachable(address)
    _use_token()
    # Imported here because Ray takes seconds, and after the token's mode is set.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)
    try:
        with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise InputError(
            f"ADDRESS '{address}': {_first_line(error)}; give the token that the cluster was started with in "
            "RAY_AUTH_TOKEN, or the path of its file in RAY_AUTH_TOKEN_PATH (default ~/.ray/auth_token)"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"ADDRESS '{address}' is no Ray dashboard with jobs: {_first_line(error)}") from error


def _check_reachable(address: str) -> None:
    """Ray's own client would wait for minutes for a host that does not answer."""
    try:
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        # Somebody is there; who wants a token says so here.
        return
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"ADDRESS '{address}': no Ray dashboard answers there: {reason}; see that the head runs"
        ) from error


def _use_token() -> None:
    """Ray sends a token only where it is told that there are tokens, and then insists on having one."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Without environment variables that to Ray count more than the address it is given."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _output(job: Job, shared: Shared) -> str:
    if not job.output:
        raise InputError(
            "OUTPUT is missing: a job needs a place that every node can write to, as OUTPUT=s3://bucket/run"
        )
    if _SECRET.search(job.output):
        raise InputError(
            "OUTPUT holds a key or password, which the cluster would show; pass it by PASS_ENV=AWS_SECRET_ACCESS_KEY"
        )
    return shared.place("OUTPUT", job.output)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise InputError(f"PASS_ENV names {name}, which is not set here; set it: export {name}=…")
    return value


def _command(job: Job, upload: Upload) -> list[str]:
    given = {
        "--dataset": upload.dataset,
        "--profile": upload.profile,
        "--output": job.output,
        "--limit": job.limit,
        "--discriminator": job.discriminator,
    }
    flags = {"--update": job.update, "--fresh": job.fresh, "--retry-rejects": job.retry_rejects}
    options = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    return ["python", "-m", "pipeline", "annotate", *options, *(flag for flag, wanted in flags.items() if wanted)]


def _environment(folder: Path, variables: dict[str, str], install: bool) -> dict[str, Any]:
    """The job's Ray runtime environment."""
    # SIGINT ends `annotate` in order: its lock is given back.
    stopping = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables | stopping}
    if install:
        environment["pip"] = {"packages": pinned_packages(), "pip_check": False}
        environment["config"] = {"setup_timeout_seconds": INSTALL_SECONDS}
    return environment


def pinned_packages() -> list[str]:
    """What this package needs, directly or not, as `name==version` of what is installed here; without Ray, which a
    cluster has and which a job cannot replace."""
    found: dict[str, str] = {}
    waiting = [("ivm-mix", "")]
    while waiting:
        package, extra = waiting.pop()
        for line in requires(package) or []:
            requirement = Requirement(line)
            name = requirement.name.lower().replace("_", "-")
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            if name in found or name == "ray":
                continue
            try:
                # Without what says that a build is for CPUs, as +cpu.
                found[name] = version(name).partition("+")[0]
            except PackageNotFoundError:
                continue
            waiting += [(name, each) for each in ("", *requirement.extras)]
    return sorted(f"{name}=={installed}" for name, installed in found.items())


def start_or_join(
    client: "JobSubmissionClient", dataset: str, output: str, work: str, command: str, environment: dict[str, Any]
) -> str:
    """The id of the job that does this work on this output: the one that runs, or a new one.

    Raises:
        InputError: a job with other settings runs on this output.
        RunFailed: the cluster does not take the job.
    """
    prefix = f"ivm-mix-{dataset}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"
    while True:
        before = _jobs_on(client, output)
        for job in before:
            if job.status.is_terminal():
                continue
            if (job.metadata or {}).get(_WORK) != work:
                raise InputError(
                    f"OUTPUT '{output}' is in use by job {job.submission_id}, submitted with other settings or code; "
                    "wait for it, stop it with --stop (STOP=1), or choose another OUTPUT"
                )
            _say(f"job {job.submission_id} is at it already; this is its log")
            return str(job.submission_id)
        name = f"{prefix}-{len(before) + 1}"
        try:
            client.submit_job(
                entrypoint=command,
                submission_id=name,
                runtime_env=environment,
                metadata={_OUTPUT: output, _WORK: work},
            )
        except RuntimeError as error:
            # Another `submit` of the same came in between.
            if "already exists" in str(error):
                time.sleep(1)
                continue
            raise RunFailed(f"the cluster did not take the job: {_first_line(error)}") from error
        _say(f"job {name} is submitted; Ctrl-C leaves it running, --stop (STOP=1) stops it")
        return name


def _jobs_on(client: "JobSubmissionClient", output: str) -> "list[JobDetails]":
    try:
        return [job for job in client.list_jobs() if (job.metadata or {}).get(_OUTPUT) == output]
    except RuntimeError as error:
        raise RunFailed(f"the cluster does not list its jobs: {_first_line(error)}") from error


def _follow(client: "JobSubmissionClient", name: str) -> "JobDetails":
    """Prints the job's log as it grows, until the job has ended; what it then is.

    Raises:
        RunFailed: the head does not answer any more.
    """
    shown, lost = 0, None
    while True:
        try:
            shown = asyncio.run(_print_log(client, name, shown))
            job = client.get_job_info(name)
            if job.status.is_terminal():
                return job
            lost = None
        # The connection's and the server's many ways to be away for a moment.
        except (OSError, RuntimeError) as error:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > LOST_SECONDS:
                raise RunFailed(f"the cluster's head does not answer: {_first_line(error)}") from error
        time.sleep(1)


async def _print_log(client: "JobSubmissionClient", name: str, shown: int) -> int:
    """Prints the log beyond its first `shown` characters until it ends or the connection breaks; returns its length."""
    from aiohttp import ClientError

    seen = 0
    # Whether the job has ended is for its status to say.
    with suppress(ClientError, RuntimeError):
        async for text in client.tail_job_logs(name):
            print(text[max(0, shown - seen) :], end="", flush=True)
            seen += len(text)
    return max(seen, shown)


def _end(job: "JobDetails", output: str) -> int:
    status, code = job.status.value, job.driver_exit_code
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        _say(f"job {job.submission_id} was stopped; the same command (without --fresh) goes on from what is committed")
        return STOPPED
    if code is None or not 0 < code < _KILLED:
        raise RunFailed(
            f"job {job.submission_id} on {output} died (status {code}): {_first_line(job.message or 'no message')}"
        )
    return code


def _stop(client: "JobSubmissionClient", output: str) -> int:
    """Stops the job on this output, if there is one, and waits until it has; returns 0."""
    running = [job for job in _jobs_on(client, output) if not job.status.is_terminal()]
    if not running:
        _say(f"no job is running on {output}")
    for job in running:
        name = str(job.submission_id)
        client.stop_job(name)
        ends = time.monotonic() + 2 * STOP_SECONDS
        while not client.get_job_info(name).status.is_terminal():
            if time.monotonic() > ends:
                raise RunFailed(f"job {name} does not stop; see the dashboard")
            time.sleep(0.5)
        _say(f"job {name} is stopped; the same command without --stop goes on from what is committed")
    return 0


def _say(text: str) -> None:
    print(f"ivm-mix: {text}", file=sys.stderr, flush=True)


def _first_line(error: BaseException | str) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
