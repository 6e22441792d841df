"""The lock against a second live run on one OUTPUT: a lease that its owner renews, on any storage."""

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from pipeline.errors import InputError
from pipeline.store import RunStore

log = logging.getLogger(__name__)

LOCK_FILE = "lock.json"
RENEW_SECONDS = 5.0
EXPIRE_SECONDS = 30.0
"""A lease not renewed for so long is dead: its owner was killed, or its machine is gone."""

SETTLE_SECONDS, REMOTE_SETTLE_SECONDS = 0.2, 2.0
"""A new owner waits for so long before it looks whether the lease is still its own: longer than it takes another one
from seeing no lease to having written its own."""

_OWN: set[str] = set()
"""Owners of the leases that this process holds."""


class RunLock:
    """Context manager that holds a run's lease and renews it in a thread.

    A lease whose owner is a dead process of this machine is taken over at once, any other when it has expired.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.owner = uuid.uuid4().hex
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="run-lock", daemon=True)

    def __enter__(self) -> "RunLock":
        """Raises InputError: another run holds the lease."""
        holder = live_holder(self.store)
        if holder:
            raise InputError(
                f"OUTPUT '{self.store.output}' is in use by the run with pid {holder['pid']} on {holder['host']}; "
                "wait for it, stop it, or choose another OUTPUT"
            )
        self._write()
        # Two runs that start together both find no holder; the one whose lease was overwritten yields.
        time.sleep(SETTLE_SECONDS if self.store.is_local else REMOTE_SETTLE_SECONDS)
        lease = _lease(self.store)
        if lease and lease["owner"] != self.owner:
            raise InputError(f"OUTPUT '{self.store.output}' was just taken by the run with pid {lease['pid']}")
        _OWN.add(self.owner)
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewer.join()
        _OWN.discard(self.owner)
        try:
            lease = _lease(self.store)
            if lease and lease["owner"] == self.owner:
                self.store.delete([LOCK_FILE])
        except OSError as failure:
            # It expires; what is raised here would hide why the run ended.
            log.warning("the run's lease could not be given back: %s", failure)

    def _write(self) -> None:
        lease = {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        self.store.write(LOCK_FILE, json.dumps(lease).encode())

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                lease = _lease(self.store)
                if lease and lease["owner"] != self.owner:
                    # This machine slept past its lease and another run took over: two must not write.
                    print(f"ivm-mix: the run with pid {lease['pid']} has taken over; stopping", file=sys.stderr)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._write()
            # Storage that is away for a moment raises whatever its library likes and is tried again; if it stays
            # away, the run's own writes fail.
            except Exception:
                log.warning("the run's lease could not be renewed", exc_info=True)


def live_holder(store: RunStore) -> dict[str, Any] | None:
    """The lease on a run if its owner lives: `owner`, `host`, `pid`, `renewed` (Unix seconds); else None."""
    lease = _lease(store)
    if not lease or time.time() - lease["renewed"] > EXPIRE_SECONDS:
        return None
    if lease["host"] == socket.gethostname() and not _alive(lease):
        return None
    return lease


def _lease(store: RunStore) -> dict[str, Any] | None:
    data = store.read(LOCK_FILE)
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        # Cut short by a storage that does not write files whole: nobody's.
        return None


def _alive(lease: dict[str, Any]) -> bool:
    pid = lease["pid"]
    if pid == os.getpid():
        # A restarted container has its old name and pid again.
        return lease["owner"] in _OWN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
