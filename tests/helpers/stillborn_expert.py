"""An expert whose process dies while it loads, as for lack of memory."""

import os
import signal

from experts.base import ExpertOptions, Placement
from tests.helpers.killing_expert import KillingExpert


class StillbornExpert(KillingExpert):
    def __init__(self, options: ExpertOptions, placement: Placement | None = None) -> None:
        super().__init__(options, placement)
        os.kill(os.getpid(), signal.SIGKILL)
