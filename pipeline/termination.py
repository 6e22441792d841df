"""SIGTERM, as clusters and spot markets send it before they take the machine: the command ends within its grace."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 143
GRACE_S = 25.0
"""Kubernetes and spot markets give 30 s."""


_came = threading.Event()


class Terminated(KeyboardInterrupt):
    """SIGTERM came. As Ctrl-C, it passes every handler of errors on its way out."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """In the block SIGTERM raises `Terminated`, and GRACE_S seconds later the process ends come what may.

    SIGINT raises `KeyboardInterrupt` there even if it was ignored, as it is in what a script starts with `&`: the
    watchers of the lease and of the nodes end a run with it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _came.clear()
    before = signal.signal(signal.SIGTERM, _terminate)
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except BaseException as error:
        # Native code that is waiting, as Ray's, may make of what a signal raises an error of its own.
        if _came.is_set() and not isinstance(error, Terminated):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """What SIGTERM does stays as it is, whatever the block sets, as `ray.init` does: exit with its number."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        _terminate(signal.SIGTERM, None)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    # A second one must not break off the clean end that the first began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _came.set()
    timer = threading.Timer(GRACE_S, _give_up)
    timer.daemon = True
    timer.start()
    raise Terminated


def _give_up() -> None:
    print(f"ivm-mix: not done {GRACE_S:g} s after SIGTERM; ending at once", file=sys.stderr, flush=True)
    os._exit(TERMINATED)
