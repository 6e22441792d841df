"""`submit` on a real Ray head with tokens: jobs end as local runs do; joining, leaving, stopping, going on."""

import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
import pytest
import yaml
from PIL import Image
from ray.job_submission import JobStatus

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.frames import read
from pipeline.submit import pinned_packages, start_or_join
from tests.conftest import make_drawn
from tests.helpers import waiting_expert

pytestmark = [pytest.mark.faults, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
KEY = "sk-never-to-be-seen"


class Head(NamedTuple):
    """A Ray head: the URL of its dashboard, and its token."""

    address: str
    token: str

    def jobs(self):
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


def free_port() -> int:
    # Below are the ports of Ray's workers.
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            if probe.getsockname()[1] >= 20000:
                return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head of its own, with what a cluster's image has: installed packages, and not this code."""
    token, port = secrets.token_hex(16), free_port()
    session = Path(f"/tmp/ivm-submit-{os.getpid()}")  # sockets below it have short paths only
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    options = ["--port=0", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    options += [f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0", "--metrics-export-port=0"]
    options += ["--num-cpus=4", f"--temp-dir={session}", "--object-store-memory=100000000", "--disable-usage-stats"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"HOME": str(tmp_path_factory.mktemp("home"))} | ours,
        start_new_session=True,
    )
    head = Head(f"http://127.0.0.1:{port}", token)
    until(lambda: process.poll() is not None or answers(head))
    yield head
    # Its workers end with it.
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(session, ignore_errors=True)


def answers(head) -> bool:
    try:
        return head.jobs() is not None
    except (OSError, urllib.error.URLError):
        return False


def until(happened) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


class User:
    """Whoever types the commands: their dataset of four images, profile, expert, and environment."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head, self.gate = folder, head, folder / "gate"
        self.dataset = make_drawn(folder)
        self.dataset.lines = [line | {"mask": None} for line in self.dataset.lines[:8:2]]
        self.dataset.write()
        last = self.dataset.folder / "images" / "03.png"
        with Image.open(last) as image:
            image.putpixel((0, 0), (255, 0, 255))
            image.save(last)
        (folder / "my_experts").mkdir()
        shutil.copy(waiting_expert.__file__, folder / "my_experts" / "waiting.py")
        profile = {
            "shard_pairs": 1,
            "experts": {"waiting": {"expert": "my_experts.waiting", "pool": {"cpus": 0.25}}},
            "pools": {name: {"cpus": 0.25} for name in ("samples", "discriminator", "scores", "labels")},
        }
        (folder / "cheap.yaml").write_text(yaml.safe_dump(profile))
        self.environment = os.environ | {
            "PYTHONPATH": f"{folder}:{ROOT}",
            "RAY_AUTH_TOKEN": head.token,
            "RAY_ADDRESS": "127.0.0.1:1",  # which is not the head, and must not be asked
            "OPENAI_API_KEY": KEY,
            waiting_expert.GATE: str(self.gate),
        }
        self.environment.pop("RAY_AUTH_MODE", None)

    def command(self, output: str, *more: str, verb: str = "submit") -> list[str]:
        remote = ["--address", self.head.address, "--shared", str(self.folder)] if verb == "submit" else []
        words = [
            verb,
            "--dataset",
            self.dataset.manifest,
            "--profile",
            "cheap.yaml",
            "--output",
            str(self.folder / output),
        ]
        return [sys.executable, "-m", "pipeline", *words, *remote, *more]

    def start(self, *more: str, log: str) -> subprocess.Popen:
        with (self.folder / log).open("w") as file:
            command = self.command("run", "--pass-env", f"{waiting_expert.GATE} OPENAI_API_KEY", *more)
            return subprocess.Popen(command, stdout=file, stderr=file, cwd=self.folder, env=self.environment)

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess:
        changed = self.environment | environment
        return subprocess.run(command, cwd=self.folder, env=changed, capture_output=True, text=True, timeout=240)

    def log(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def user(head, tmp_path_factory):
    return User(tmp_path_factory.mktemp("user"), head)


def rows(run: Path, table: str) -> pd.DataFrame:
    key = {"candidates": "candidate_id", "scores": "candidate_id"}.get(table, "uuid")
    return read(str(run), table).sort_values(key, ignore_index=True)


def times(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.glob("done/candidates/*/*.json")}


def test_a_job_is_joined_left_stopped_and_gone_on_with_and_gives_what_a_local_run_gives(user, head):
    run = user.folder / "run"
    first = user.start(log="first.log")
    # The last image's shard is held back until there is a gate; shards may overtake each other.
    until(lambda: first.poll() is not None or times(run))
    committed = times(run)
    second = user.start(log="second.log")
    until(lambda: second.poll() is not None or "at it already" in user.log("second.log"))
    assert "job ivm-mix-drawn-" in user.log("first.log")
    assert len(head.jobs()) == 1

    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    assert user.log("first.log").endswith("goes on; say the same again to watch it, with --stop (STOP=1) to stop it\n")

    stopped = user.run(user.command("run", "--stop"))
    assert (stopped.returncode, second.wait(timeout=60)) == (0, 130)
    assert "interrupted" in user.log("second.log"), "the job was killed, not asked to stop"
    assert not (run / "lock.json").exists()

    user.gate.touch()
    third = user.start(log="third.log")
    assert third.wait(timeout=240) == 0, user.log("third.log")
    assert [job["status"] for job in sorted(head.jobs(), key=lambda job: job["start_time"])] == ["STOPPED", "SUCCEEDED"]
    assert "4 pairs, 0 rejected" in user.log("third.log")
    assert "\r" not in user.log("third.log")
    assert {name: written for name, written in times(run).items() if name in committed} == committed

    local = user.run(user.command("local", verb="annotate"), RAY_ADDRESS="")
    while "timed out during startup" in local.stderr:  # Ray gives itself 30 s, however busy the machine
        local = user.run(user.command("local", verb="annotate"), RAY_ADDRESS="")
    assert local.returncode == 0, local.stderr
    for table in ("samples", "candidates", "scores", "labels"):
        pd.testing.assert_frame_equal(rows(run, table), rows(user.folder / "local", table))
    assert len(rows(run, "candidates")) == 4

    told = json.dumps([[job["entrypoint"], job["metadata"], job["message"]] for job in head.jobs()])
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert KEY not in told + user.log("first.log") + user.log("second.log") + user.log("third.log")
    assert KEY.encode() not in written


def test_the_exit_status_of_the_job_is_passed_on(user):
    user.dataset.write(annotations="gone.jsonl")
    job = user.run(user.command("bad"))
    user.dataset.write()
    assert job.returncode == 2, job.stderr
    assert "gone.jsonl" in job.stdout
    assert "; mend field 'annotations'" in job.stdout


def test_a_wrong_token_is_bad_input(user):
    refused = user.run(user.command("run"), RAY_AUTH_TOKEN=hashlib.md5(b"other").hexdigest())
    assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (2, 1, "")
    assert (
        "Invalid authentication token; give the token that the cluster was started with in RAY_AUTH_TOKEN"
        in refused.stderr
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"--address": "http://127.0.0.1:1"}, "no Ray dashboard answers there: [Errno 111] Connection refused"),
        ({"--address": "ray://head:10001"}, "ADDRESS 'ray://head:10001': give the dashboard of the cluster's head"),
        ({"--output": "runs/demo"}, "OUTPUT 'runs/demo' is a path of this machine"),
        ({"--output": "s3://me:secret@b/run"}, "OUTPUT holds a key or password"),
        ({"--pass-env": "NOT_SET_ANYWHERE"}, "PASS_ENV names NOT_SET_ANYWHERE, which is not set here"),
        ({"--shared": "data"}, "--shared 'data' (SHARED): give the absolute path"),
        ({"--discriminator": "runs/demo"}, "DISCRIMINATOR 'runs/demo' is a path of this machine"),
    ],
)
def test_what_cannot_work_is_bad_input_at_once(capsys, changed, told):
    words = {"--dataset": "demo", "--address": "http://127.0.0.1:1", "--output": "s3://bucket/run"} | changed
    assert main(["submit", *(word for pair in words.items() for word in pair)]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")


class Cluster:
    """Stands for a job server on which another `submit` is quicker: after `late` looks its job is there."""

    def __init__(self, late: int) -> None:
        self.late, self.submitted = late, []
        self.job = SimpleNamespace(
            status=JobStatus.RUNNING,
            submission_id="theirs",
            metadata={"ivm-mix-output": "s3://b/run", "ivm-mix-work": "same"},
        )

    def list_jobs(self):
        self.late -= 1
        return [self.job] if self.late < 0 else []

    def submit_job(self, submission_id, **_):
        self.submitted.append(submission_id)
        raise RuntimeError(f"Job with submission_id {submission_id} already exists.")


def test_one_job_per_output_whoever_comes_first():
    cluster = Cluster(late=1)
    assert start_or_join(cluster, "x", "s3://b/run", "same", "python", {}) == "theirs"
    assert len(cluster.submitted) == 1
    with pytest.raises(InputError, match=r"'s3://b/run' is in use by job theirs, submitted with other settings"):
        start_or_join(Cluster(late=0), "x", "s3://b/run", "other", "python", {})


def test_what_ray_shall_install_is_pinned_and_has_no_ray():
    packages = dict(line.split("==") for line in pinned_packages())
    constraints = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {"torch", "transformers", "pyarrow", "tokenizers"} <= packages.keys()
    assert not {"ray", "pytest", "ivm-mix"} & packages.keys()
    assert {name: constraints.get(name) for name in packages} == packages
