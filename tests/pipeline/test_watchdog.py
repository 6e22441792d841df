"""A process whose call hangs is ended, by Python's own thread or, where that has no turn, without it."""

import subprocess
import sys
import time

import pytest

PROCESS = """
import re, sys, time
from pipeline.watchdog import Watchdog

dog = Watchdog(4, lambda seconds: print("hung for", seconds, flush=True))
for _ in range(4):
    with dog.watching():
        time.sleep(1.2)
print("in time", flush=True)
with dog.watching():
    {hang}
"""


@pytest.mark.parametrize(
    ("hang", "told"),
    [("time.sleep(60)", "hung for 4"), ("re.match('(a+)+b', 'a' * 60)", "")],
    ids=["sleeps", "keeps-the-lock-of-python"],
)
def test_a_call_that_hangs_ends_the_process_and_those_in_time_do_not(hang, told):
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS.format(hang=hang)], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stdout.split("\n", 1) == ["in time", f"{told}\n" if told else ""]
    assert 'File "<string>", line 11' in ended.stderr
    assert time.monotonic() - started < 50
