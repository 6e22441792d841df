"""What SIGTERM does to a command; the process is a real one, as it may end."""

import signal
import subprocess
import sys

import pytest

PROCESS = """
import os, signal, sys, time
from pipeline import termination

termination.GRACE_S = 3.0
try:
    with termination.sigterm_raises():
        {block}
except termination.Terminated:
    print("raised", flush=True)
    {end}
print("ended", flush=True)
"""
TERM = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"
AS_RAY_DOES = f"""with termination.sigterm_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            {TERM}"""
AFTER_RAY = f"""with termination.sigterm_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        {TERM}"""

IN_NATIVE_CODE = f"""try:
            {TERM}
        except KeyboardInterrupt:
            raise SystemError("returned a result with an exception set") from None"""


def run(block: str, end: str = "pass") -> subprocess.CompletedProcess:
    code = PROCESS.format(block=block, end=end)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "block",
    [TERM, IN_NATIVE_CODE, AS_RAY_DOES, AFTER_RAY],
    ids=["plain", "native", "during-ray-init", "after-ray-init"],
)
def test_sigterm_is_raised_and_lets_the_command_end(block):
    assert run(block).stdout.split() == ["raised", "ended"]


def test_an_end_that_takes_longer_than_the_grace_is_cut_short():
    ended = run(TERM, end="time.sleep(30)")
    assert (ended.returncode, ended.stdout.split()) == (143, ["raised"])
    assert ended.stderr == "ivm-mix: not done 3 s after SIGTERM; ending at once\n"


def test_outside_of_a_command_sigterm_is_what_it_was():
    assert run(f"pass\n    {TERM}").returncode == -signal.SIGTERM


IGNORED = """
import os, signal
from pipeline.termination import sigterm_raises

signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    with sigterm_raises():
        os.kill(os.getpid(), signal.SIGINT)
        print("went on")
except KeyboardInterrupt:
    print("raised")
os.kill(os.getpid(), signal.SIGINT)
print("ignored again")
"""


def test_a_command_in_a_scripts_background_where_sigint_is_ignored_can_still_be_ended_by_its_watchers():
    ended = subprocess.run([sys.executable, "-c", IGNORED], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.splitlines()) == (0, ["raised", "ignored again"])
