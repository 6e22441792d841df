"""A Ray that the tests of whole runs share."""

import os
import secrets
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.helpers.s3_server import ENVIRONMENT, serve_s3

KEY = "sk-test-1234567890abcdef"

# A driver that starts a Ray of its own turns tokens on for its whole process, and no longer talks to a cluster that
# was started without them: so all have the same one from the start.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))

_HOLD = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
print("ready", cluster.address, cluster.head_node.get_session_dir_path(), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class Head(NamedTuple):
    """A head node: its `address`, and its `session` folder with the logs."""

    address: str
    session: str


@pytest.fixture(scope="session")
def cluster():
    """One head node for all runs of a test process, each a job of its own: Ray takes seconds to start.

    `KEY` is the API key in its workers' environment, beside keys for S3, as on a cluster whose nodes have them. It is
    held by a process of its own, because a test that starts and ends a local Ray would end this one with it.
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | ENVIRONMENT | {"OPENAI_API_KEY": KEY},
    )
    assert holder.stdin and holder.stdout
    words = next(line for line in holder.stdout if line.startswith("ready")).split()
    yield Head(*words[1:])
    holder.stdin.close()
    holder.wait(timeout=60)


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    """Commands of this test run on the shared cluster, others start a Ray of their own."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)


@pytest.fixture(scope="session")
def s3():
    """An S3 server with a bucket `bucket`, and the keys for it in this process's environment."""
    with pytest.MonkeyPatch.context() as patch, serve_s3() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server.create("bucket")
        yield server
