import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline import lock
from pipeline.errors import InputError
from pipeline.lock import LOCK_FILE, RunLock, live_holder
from pipeline.store import RunStore


def lease(store, **fields):
    now = {"owner": "other", "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    store.write(LOCK_FILE, json.dumps(now | fields).encode())


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def store(tmp_path):
    return RunStore(str(tmp_path))


def test_the_lock_is_held_inside_and_gone_after(store):
    with RunLock(store):
        assert live_holder(store)["pid"] == os.getpid()
    assert LOCK_FILE not in store.files("")
    assert live_holder(store) is None


def test_a_second_live_run_is_refused_and_told_who_holds_it(store):
    with (
        RunLock(store),
        pytest.raises(InputError, match=f"in use by the run with pid {os.getpid()}"),
        RunLock(RunStore(store.output)),
    ):
        pass


def test_a_run_on_another_host_is_refused_while_its_lease_is_fresh(store):
    lease(store, host="elsewhere", pid=1)
    with pytest.raises(InputError, match="elsewhere"), RunLock(store):
        pass


def test_an_expired_lease_is_taken_over(store):
    lease(store, host="elsewhere", renewed=time.time() - lock.EXPIRE_SECONDS - 1)
    with RunLock(store):
        assert live_holder(store)["host"] == socket.gethostname()


def test_the_lease_of_a_killed_process_of_this_host_is_taken_over_at_once(store):
    lease(store, pid=dead_pid())
    with RunLock(store):
        assert live_holder(store)["pid"] == os.getpid()


def test_the_lease_of_a_restarted_container_is_taken_over(store):
    lease(store, pid=os.getpid())
    with RunLock(store):
        assert live_holder(store)["owner"] != "other"


def test_a_lease_cut_short_is_nobodys(store):
    store.write(LOCK_FILE, b'{"owner"')
    with RunLock(store):
        assert live_holder(store)["pid"] == os.getpid()


def test_a_run_that_lost_its_lease_stops_and_leaves_the_other_be(store, monkeypatch, capsys, request):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    # The processes of pytest-xdist ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with pytest.raises(KeyboardInterrupt), RunLock(store):
        for _ in range(50):
            # The renewer may just have looked, and write over it.
            lease(store, host="elsewhere", pid=4321)
            time.sleep(0.2)
    assert "pid 4321 has taken over" in capsys.readouterr().err
    assert live_holder(store)["host"] == "elsewhere"


def test_a_long_run_renews_its_lease(store, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with RunLock(store):
        first = live_holder(store)["renewed"]
        deadline = time.monotonic() + 20
        while live_holder(store)["renewed"] == first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert live_holder(store)["renewed"] > first
