import sys
from typing import Any

import pytest

from pipeline.progress import progress


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.split("\n") if line.strip()]


def test_off_a_terminal_it_is_whole_lines_from_the_start_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("ground", "pairs", total=40, delay=0) as bar:
        bar.update(40)
    first, last = lines(capsys)
    assert first.startswith("ground: 0%, 0 of 40 pairs, ")
    assert last.startswith("ground: 100%, 40 of 40 pairs, ")
    assert "\r" not in first + last


def test_what_is_not_counted_before_shows_no_share_and_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress("plan", "pairs", (number for number in range(7)), delay=0)) == list(range(7))
    last = lines(capsys)[-1]
    assert last.startswith("plan: 7 pairs, ")
    assert "%" not in last and "left" not in last


def test_what_is_over_at_once_is_not_worth_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress("evaluate", "shards", [1, 2])) == [1, 2]
    assert not lines(capsys)


def test_on_a_terminal_it_is_one_moving_line(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in progress("ground", "pairs", [1, 2], delay=0):
        pass
    assert "\r" in capsys.readouterr().err
