"""The page of `ivm-mix bench`: figures and what they should be, as a table and as JSON, and what machine it was."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import gmtime, strftime
from typing import Any

import pandas as pd

_PACKAGES = ("ray", "pyarrow", "pandas", "numpy", "torch")


@dataclass(frozen=True)
class Figure:
    """One line of the page: `value` in `unit`, which should be at least `least` or at most `most` where they are given.
    `letter` is that of its benchmark."""

    what: str
    value: float
    unit: str = ""
    least: float | None = None
    most: float | None = None
    letter: str = ""

    @property
    def target(self) -> str:
        """What it should be, or nothing."""
        if self.least is not None:
            return f">= {_number(self.least)}"
        return "" if self.most is None else f"<= {_number(self.most)}"

    @property
    def met(self) -> bool | None:
        """Whether it is what it should be; None where that is not said."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most


def lettered(letter: str, figures: Sequence[Figure]) -> list[Figure]:
    """The figures as those of one benchmark."""
    return [replace(figure, letter=letter) for figure in figures]


def print_page(figures: Sequence[Figure]) -> None:
    """Prints one line per figure."""
    rows = [
        {
            "": figure.letter,
            "what": figure.what,
            "figure": f"{_number(figure.value)} {figure.unit}".strip(),
            "target": figure.target,
            "met": {None: "", True: "yes", False: "NO"}[figure.met],
        }
        for figure in figures
    ]
    print(pd.DataFrame(rows).to_string(index=False, justify="left", formatters={"what": "{:<70}".format}))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def write_page(figures: Sequence[Figure], machine: dict[str, Any], path: Path) -> None:
    """Writes {"machine": …, "figures": [{letter, what, value, unit, least, most, met}, …]}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [asdict(figure) | {"met": figure.met} for figure in figures]
    path.write_text(json.dumps({"machine": machine, "figures": lines}, indent=2) + "\n")


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was just before."""
    return {
        "time": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in _PACKAGES},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _field(file: str, name: str) -> str:
    lines = Path(file).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
