"""`ivm-mix bench`: one page of figures, each from one run on this machine, and the same as JSON."""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipeline.benchmarks import ceiling, framework_tax, resume, rivals, scaling, storage, work_redone
from pipeline.benchmarks.page import Figure, describe_machine, lettered, print_page, write_page
from pipeline.errors import InputError

PAGE = Path("build/bench")


def bench(profile: str, only: str | None = None) -> list[Figure]:
    """Measures, prints the page and writes it to build/bench/bench.json, or `bench-<letters>.json` for `only` some.

    Args:
        profile: whose experts `c` compares.
        only: letters of the benchmarks wanted, by default all.

    Raises:
        InputError: there is no benchmark of such a letter.
        RunFailed: a command that is measured fails.
    """
    benchmarks: dict[str, Callable[[Path], list[Figure]]] = {
        "a": framework_tax.measure,
        "b": ceiling.measure,
        "c": partial(rivals.measure, profile=profile),
        "d": scaling.measure,
        "e": resume.measure,
        "f": storage.measure,
        "g": work_redone.measure,
    }
    if unknown := set(only or "") - benchmarks.keys():
        raise InputError(
            f"--only {only}: there is no benchmark '{min(unknown)}'; give letters of {''.join(benchmarks)}"
        )
    machine, figures = describe_machine(), list[Figure]()
    path = PAGE / (f"bench-{only}.json" if only else "bench.json")
    for letter in only or benchmarks:
        print(f"bench {letter} …", file=sys.stderr, flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ivm-mix-bench-") as folder:
            figures += lettered(letter, benchmarks[letter](Path(folder)))
        print(f"bench {letter}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        # After each, so that what is measured outlives a later failure.
        write_page(figures, machine, path)
    print_page(figures)
    print(f"\n{machine['cores']} cores, {machine['processor']}, load {machine['load_average'][0]} before. JSON: {path}")
    return figures
