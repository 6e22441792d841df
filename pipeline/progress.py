"""How far a command is: a moving bar on a terminal; elsewhere, as in a job's log, a line now and then."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_DELAY_S = 3
"""What is over sooner is not worth a word."""
_LINE_EVERY_S = 10.0


def progress(
    title: str, unit: str, items: Iterable[Any] | None = None, total: int | None = None, delay: float = _DELAY_S
) -> tqdm:
    """A bar on standard error: iterate over it to get the `items`, or `update` it by hand.

    Args:
        title: what is done.
        unit: what is counted, in the plural.
        items: what it goes over, if it is not updated by hand.
        total: how many there are; where neither this nor `items` tells, it shows no share and no time left.
        delay: seconds before it is first shown.
    """
    known: dict[str, Any] = {"desc": title, "unit": f" {unit}", "total": total, "delay": delay}
    if sys.stderr.isatty():
        return tqdm(items, **known, smoothing=0.1, mininterval=0.5)
    counted = total is not None or hasattr(items, "__len__")
    done = "{percentage:.0f}%, {n_fmt} of {total_fmt}{unit}" if counted else "{n_fmt}{unit}"
    left = ", {remaining} left" if counted else ""
    line = f"{{desc}}: {done}, {{elapsed}} gone{left}, {{rate_fmt}}{{postfix}}"
    return _Lines(items, **known, smoothing=0.1, mininterval=_LINE_EVERY_S, bar_format=line)


class _Lines(tqdm):
    """Progress as whole lines: what is written over itself, a follower of a log sees at its end only."""

    shown: float = -1

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Prints the state, unless nothing has been done since."""
        if self.n != self.shown:
            self.shown = self.n
            print(self, file=self.fp, flush=True)
