"""Ends a process whose expert hangs, whatever it hangs in."""

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDERR = 2


class Watchdog:
    """Watches calls one at a time: one that takes over `limit_s` seconds ends this process with status 1, its traceback
    on stderr. Before that, `hung` is called in another thread, so it must not need what the call holds."""

    def __init__(self, limit_s: float, hung: Callable[[float], None]) -> None:
        self.limit_s, self.hung = limit_s, hung
        self._since: float | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The block is a call."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        while True:
            # Native code that keeps Python's lock stops this thread too. This timer needs no lock, and rings only if it
            # is not set anew in time.
            faulthandler.dump_traceback_later(2 * self.limit_s, exit=True, file=STDERR)
            time.sleep(min(1.0, self.limit_s / 4))
            since = self._since
            if since is not None and time.monotonic() - since > self.limit_s:
                try:
                    self.hung(self.limit_s)
                finally:
                    faulthandler.dump_traceback(file=STDERR)
                    os._exit(1)
