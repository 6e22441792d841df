"""The page of `ivm-mix bench`: its parts that take no minutes."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from experts.base import Request
from manifests.manifest import load_manifest, open_reader
from pipeline import bench
from pipeline.benchmarks import storage
from pipeline.benchmarks.inputs import stand_in, write_dataset, write_profile
from pipeline.benchmarks.page import Figure, describe_machine, lettered, print_page, write_page
from pipeline.benchmarks.processes import run_command
from pipeline.benchmarks.scaling import images_per_second
from pipeline.benchmarks.session import count_parts, run_until
from pipeline.benchmarks.stand_in import Spell, StandIn, StandInOptions, all_busy, busy_share, read_log
from pipeline.benchmarks.work_redone import images_redone
from pipeline.cli import main
from pipeline.config import load_profile
from pipeline.errors import RunFailed


def spells(*times, first=0):
    return [Spell(start, end, first + k) for k, (start, end) in enumerate(times)]


def test_a_figure_is_met_on_its_side_of_the_target():
    assert Figure("", 0.95, least=0.95).met and not Figure("", 0.949, least=0.95).met
    assert Figure("", 1.2, most=1.2).met and not Figure("", 1.21, most=1.2).met
    assert Figure("", 7).met is None


def test_the_page_says_what_was_missed_on_screen_and_as_json(tmp_path, capsys):
    figures = lettered("b", [Figure("pairs a second", 2612.4, least=2500), Figure("memory", 1.34, most=1.2)])
    print_page(figures)
    _, fast, large = capsys.readouterr().out.splitlines()
    assert fast.split()[0] == "b" and "2,612" in fast and ">= 2,500" in fast and fast.endswith("yes")
    assert "1.34" in large and "<= 1.2" in large and large.split()[-1] == "NO"

    write_page(figures, describe_machine(), tmp_path / "new" / "bench.json")
    page = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [(line["letter"], line["value"], line["met"]) for line in page["figures"]] == [
        ("b", 2612.4, True),
        ("b", 1.34, False),
    ]
    assert page["machine"]["cores"] >= 1 and page["machine"]["packages"]["ray"]


def test_bench_refuses_a_letter_that_it_does_not_have(capsys):
    assert main(["bench", "--only", "fz"]) == 2
    assert "no benchmark 'z'" in capsys.readouterr().err


def test_bench_runs_one_letter_alone_and_writes_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.storage, "measure", lambda work: storage.measure_sizes(work, parts=2, rows=500))
    assert main(["bench", "--only", "f"]) == 0
    figures = json.loads((tmp_path / "build/bench/bench-f.json").read_text())["figures"]
    assert {figure["letter"] for figure in figures} == {"f"}
    assert "f " in capsys.readouterr().out


def test_storage_is_compared_on_masks_that_look_like_masks(tmp_path):
    stored, png, jpeg, *_ = storage.measure_sizes(tmp_path, parts=2, rows=500)
    areas = [storage.draw_mask(np.random.default_rng(seed)).mean() for seed in range(200)]
    assert 0.01 < np.median(areas) < 0.3
    files = list((tmp_path / "run" / "candidates").rglob("*.parquet"))
    assert stored.value == sum(file.stat().st_size for file in files) / 1000
    _, encoded = cv2.imencode(".jpg", storage.draw_mask(np.random.default_rng(0)) * np.uint8(255))
    # One mask tells the order of magnitude of the mean over many.
    assert 0.2 < jpeg.value * stored.value / len(encoded) < 5
    assert png.value < jpeg.value


def test_busy_is_counted_while_every_worker_is_at_work():
    slow = spells((10, 12), (12, 14), (15, 17), first=0)
    late = spells((13, 15), (15, 20), first=3)
    assert all_busy([slow, late]) == (13, 17)
    assert busy_share([slow, late], 13, 17) == (1 + 2 + 4) / 8
    assert images_per_second([slow, late]) == 3 / 4


def test_work_redone_is_what_was_done_before():
    assert images_redone([spells((0, 1), (1, 2)), spells((5, 6), first=2)]) == 0
    assert images_redone([spells((0, 1), (1, 2)), spells((5, 6), (6, 7), first=1)]) == 1


def test_a_stand_in_notes_which_image_it_had_and_for_how_long(tmp_path):
    reader = open_reader(load_manifest(str(write_dataset(tmp_path / "data", 300, 2))))
    records = list(reader.records())
    assert len({record.instruction for record in records}) == 600

    (tmp_path / "log").mkdir()
    expert = StandIn(StandInOptions(seconds=0.05, log=str(tmp_path / "log")))
    encoded = np.frombuffer(reader.read(records[-1].image), np.uint8)
    image = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    (found,) = expert.ground(image, [Request("a cup", ["cup"])])[0]
    assert found.mask.shape == image.shape[:2] and found.phrase == "cup"
    ((spell,),) = read_log(tmp_path / "log")
    assert spell.image == 299 and 0.05 <= spell.end - spell.start < 5
    assert StandIn(StandInOptions(finds=False)).ground(image, [Request("a cup", ["cup"])]) == [[]]


def test_a_profile_of_stand_ins_is_a_profile(tmp_path):
    profile = load_profile(str(write_profile(tmp_path / "p.yaml", 7, {"slow": stand_in({"seconds": 1}, gpus=1)})))
    assert profile.shard_pairs == 7
    assert profile.experts["slow"].pool.gpus == 1 and profile.experts["slow"].options["seconds"] == 1


_CHILD = (
    "import time; block = bytearray(60 << 20); end = time.process_time() + 2\nwhile time.process_time() < end: pass"
)


def test_a_command_is_measured_with_all_that_it_starts(tmp_path):
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_CHILD!r}, 'the-child']); print('done')"
    usage = run_command(["-c", command], tmp_path / "log.txt")
    assert usage.output == "done\n"
    assert usage.peak("the-child") > 60 << 20 > usage.peak("import subprocess") / 2
    # What a process takes after the last look at it, up to half a second before its end, is not seen.
    assert 1 < usage.cpu_s < 5
    with pytest.raises(RunFailed, match=r"status 3.*broken"):
        run_command(["-c", "import sys; print('broken'); sys.exit(3)"], tmp_path / "log.txt")


def test_a_command_is_killed_where_it_should_be_with_all_that_it_started(tmp_path):
    part = tmp_path / "part-00000.json"
    child = "import time; time.sleep(60)"
    command = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', {child!r}])
pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
pathlib.Path({str(part)!r}).touch()
time.sleep(60)
"""
    assert run_until(["-c", command], tmp_path / "log.txt", lambda: count_parts(tmp_path) == 1) < 30
    child = Path("/proc", (tmp_path / "child").read_text(), "cmdline")
    until = time.monotonic() + 20
    # What is left of a dead process until its heir has buried it has no command line.
    while child.exists() and child.read_bytes() and time.monotonic() < until:
        time.sleep(0.02)
    assert time.monotonic() < until
    with pytest.raises(RunFailed, match="status 0"):
        run_until(["-c", "pass"], tmp_path / "log.txt", lambda: False)
