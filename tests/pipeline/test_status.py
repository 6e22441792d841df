import json
import os
import time

import pytest

from manifests.manifest import load_manifest
from pipeline import status
from pipeline.cli import main
from pipeline.config import Profile
from pipeline.errors import InputError
from pipeline.lock import LOCK_FILE
from pipeline.plan import PLAN_INDEX
from pipeline.status import RunView, duration, open_run
from pipeline.store import DISCRIMINATOR, RUN_FILE, Marker, RunStore, marker_file
from pipeline.units import fingerprints, units_of


def test_experts_are_listed_with_what_they_need_and_where_they_do_not_reach(capsys):
    assert main(["experts"]) == 0
    listed = capsys.readouterr().out
    for words in ("regions", "saliency", "shapes", "text", "rapidocr", "yes", "limits:"):
        assert words in listed


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (PLAN_INDEX, {"shards": 7}, "another version"),
        (RUN_FILE, {"manifest": {"nome": "x"}, "profile": {}}, "another version"),
    ],
)
def test_a_run_of_another_version_is_named(tmp_path, file, content, words):
    store = RunStore(str(tmp_path))
    store.write_json(PLAN_INDEX, {"source": None, "shards": []})
    store.write_json(RUN_FILE, {"manifest": {}, "profile": {}})
    store.write(file, json.dumps(content).encode())
    with pytest.raises(InputError, match=words):
        open_run(str(tmp_path))


class FakeRun:
    """A run of shards of 100 pairs whose files a test writes, as workers of another machine would."""

    def __init__(self, folder, shards: int, rules: dict | None = None, **instruct):
        self.store = RunStore(str(folder))
        self.output = self.store.output
        self.manifest = load_manifest("demo")
        self.profile = Profile.model_validate({"experts": {"shapes": {}}, "instruct": instruct, **(rules or {})})
        self.units = units_of(self.profile, self.manifest)
        description = {"manifest": self.manifest, "profile": self.profile}
        self.store.write_json(RUN_FILE, {key: value.model_dump(mode="json") for key, value in description.items()})
        self.plan(shards)

    def plan(self, shards: int) -> None:
        plan = {"source": None, "shards": [{"pairs": 100, "sha256": "0" * 64}] * shards}
        self.store.write_json(PLAN_INDEX, plan)

    def commit(self, unit: str, shard: int, ago: float = 0.0, **fields) -> str:
        marker = Marker(unit=unit, shard=shard, fingerprint=fingerprints(self.units)[unit], sha256={}, **fields)
        name = marker_file(unit, shard)
        self.store.write(name, marker.model_dump_json().encode())
        os.utime(self.store.path(name), (time.time() - ago,) * 2)
        return name

    def hold(self, ago: float = 0.0) -> None:
        lease = {"owner": "other", "host": "elsewhere", "pid": 17, "renewed": time.time() - ago}
        self.store.write(LOCK_FILE, json.dumps(lease).encode())


def view_of(run: FakeRun) -> RunView:
    view = RunView(run.output)
    view.refresh()
    return view


def at_each_look(monkeypatch, *steps):
    """What happens between two looks of a watch; time stands still for it."""
    waiting = list(steps)
    monkeypatch.setattr(status.time, "sleep", lambda seconds: waiting.pop(0)())


def test_a_watch_follows_a_run_to_its_end_a_line_at_each_look(tmp_path, monkeypatch, capsys):
    run = FakeRun(tmp_path, 2)
    run.hold()
    at_each_look(
        monkeypatch,
        lambda: run.commit("samples", 0, rows=90, rejects=10),
        lambda: run.commit("candidates/shapes", 0, rows=90),
        lambda: run.store.delete([LOCK_FILE]),
    )
    assert main(["status", run.output, "--watch", "7"]) == 0
    first, second, third, *summary = capsys.readouterr().out.splitlines()
    assert first.endswith("nothing committed yet")
    assert second.endswith("samples 1/2, 10 rejects")
    assert third.endswith("samples 1/2, 10 rejects; candidates/shapes 1/2")
    assert summary[-1] == "not running"
    assert any(line.split()[:4] == ["samples", "1/2", "90", "10"] for line in summary)


def test_a_watch_of_a_terminal_redraws_its_table(tmp_path, monkeypatch, capsys):
    run = FakeRun(tmp_path, 2)
    run.hold()
    at_each_look(monkeypatch, lambda: run.commit("samples", 0, rows=90), lambda: run.store.delete([LOCK_FILE]))
    monkeypatch.setattr(status.sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["status", run.output, "--watch"]) == 0
    before, first, second = capsys.readouterr().out.split("\033[2J\033[H")
    assert before == ""
    assert "live: pid 17 on elsewhere, lock renewed 0 s ago" in first
    assert "1/2" not in first and "1/2" in second


def test_ctrl_c_ends_a_watch_and_nothing_else(tmp_path, monkeypatch, capsys):
    run = FakeRun(tmp_path, 2)
    run.hold()

    def interrupt():
        raise KeyboardInterrupt

    at_each_look(monkeypatch, interrupt)
    assert main(["status", run.output, "--watch"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and err == ""
    assert run.store.read(LOCK_FILE)


def test_a_watch_outlasts_a_storage_that_does_not_answer(tmp_path, monkeypatch, capsys):
    run = FakeRun(tmp_path, 2)
    run.hold()
    refresh = RunView.refresh

    def away(self):
        raise OSError("no route to host")

    def back():
        monkeypatch.setattr(RunView, "refresh", refresh)
        run.store.delete([LOCK_FILE])

    monkeypatch.setattr(RunView, "refresh", away)
    at_each_look(monkeypatch, back)
    assert main(["status", run.output, "--watch"]) == 0
    out, err = capsys.readouterr()
    assert err == f"ivm-mix: {run.output} cannot be read: no route to host; trying again\n"
    assert out.endswith("not running\n")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_watch_that_never_waits_is_refused(tmp_path, capsys, seconds):
    run = FakeRun(tmp_path, 1)
    assert main(["status", run.output, f"--watch={seconds}"]) == 2
    assert f"--watch {seconds}: give seconds, more than 0" in capsys.readouterr().err


def test_only_markers_that_are_new_are_read(tmp_path, monkeypatch):
    run = FakeRun(tmp_path, 4)
    for shard in range(3):
        run.commit("samples", shard, ago=50, rows=90)
    view = view_of(run)
    read = []
    marker = RunStore.marker
    monkeypatch.setattr(RunStore, "marker", lambda self, *part: read.append(part) or marker(self, *part))
    view.refresh()
    assert read == []
    run.commit("samples", 1, rows=91)
    run.commit("samples", 3, rows=92)
    run.store.delete([marker_file("samples", 0)])
    run.store.write(marker_file("samples", 2), b"{ cut short")
    view.refresh()
    assert sorted(read) == [("samples", 1), ("samples", 2), ("samples", 3)]
    assert {shard: marker.rows for shard, marker in view.markers["samples"].items()} == {1: 91, 3: 92}


def test_a_unit_goes_as_fast_as_its_last_minutes_say(tmp_path):
    run = FakeRun(tmp_path, 7)
    for shard, ago in enumerate([4000, 200, 150, 100, 0]):
        run.commit("samples", shard, ago=ago)
    rate, left = view_of(run).pace("samples")
    assert rate == pytest.approx(300 / 200, rel=0.05)
    assert left == pytest.approx(200 / rate)
    assert view_of(run).pace("candidates/shapes") is None


def test_a_unit_that_is_done_or_has_only_begun_has_no_pace(tmp_path):
    run = FakeRun(tmp_path, 2)
    run.commit("samples", 0, ago=10)
    assert view_of(run).pace("samples") is None
    run.commit("samples", 1)
    assert view_of(run).pace("samples") is None


def test_parts_that_are_stale_count_as_work_that_is_left(tmp_path):
    run = FakeRun(tmp_path, 4)
    for shard, ago in ((0, 100), (1, 50)):
        run.commit("samples", shard, ago=ago)
    stale = Marker(unit="samples", shard=2, fingerprint="of another profile", sha256={}, rows=5)
    run.store.write(marker_file("samples", 2), stale.model_dump_json().encode())
    rate, left = view_of(run).pace("samples")
    assert left == pytest.approx(200 / rate)
    assert "2/4" in view_of(run).table()


def test_a_view_takes_up_another_plan(tmp_path):
    run = FakeRun(tmp_path, 2)
    run.commit("samples", 0)
    view = view_of(run)
    run.plan(30)
    view.refresh()
    assert "1/30" in view.table()


@pytest.mark.parametrize(
    ("ago", "words"),
    [
        (None, "not running"),
        (3, "live: pid 17 on elsewhere, lock renewed 3 s ago"),
        (7200, "not running; pid 17 on elsewhere ended without a word, its lock was last renewed 2 h 00 min ago"),
    ],
)
def test_it_is_told_who_works_on_a_run(tmp_path, capsys, ago, words):
    run = FakeRun(tmp_path, 1)
    if ago is not None:
        run.hold(ago)
    assert main(["status", run.output]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == words


def test_tokens_and_money_of_a_live_run_come_from_its_markers(tmp_path):
    llm = {"base_url": "http://localhost:1/v1", "model": "m", "price": {"input": 2.0, "output": 10.0}}
    run = FakeRun(tmp_path, 3, simplifier="llm", llm=llm)
    for shard in range(2):
        tokens = {"tokens/input": 1_000_000, "tokens/output": 500, "tokens/cached": 30}
        run.commit("samples", shard, stats=tokens)
    assert view_of(run).spent() == ""
    run.hold()
    told = "2,000,000 tokens in, 1,000 out, 60 of kept answers, 4.0100 spent"
    assert view_of(run).spent() == f"language model, for the samples so far: {told}\n"


BY_QUALITY = "set weight: {rule: quality} and fusion: {rule: quality}"


@pytest.mark.parametrize(
    ("d", "quality", "rules", "distrusted", "by_quality"),
    [
        (-0.08, 0.4, {}, True, True),
        (-0.08, 0.1, {}, True, False),
        (-0.08, 0.4, {"fusion": {"rule": "quality"}}, True, True),
        (-0.08, 0.4, {"fusion": {"rule": "quality"}, "weight": {"rule": "quality"}}, False, False),
        (0.67, 0.75, {}, False, False),
        (None, None, {}, False, False),
    ],
)
def test_a_d_that_does_not_follow_true_iou_is_told(tmp_path, capsys, d, quality, rules, distrusted, by_quality):
    run = FakeRun(tmp_path, 1, rules)
    metrics = {"auc": 0.7, "auc_wrong_target": None, "d_spearman": d, "quality_spearman": quality}
    run.store.write_json(f"{DISCRIMINATOR}/metrics.json", metrics)
    run.commit(DISCRIMINATOR, 0)
    assert main(["status", run.output]) == 0
    told = capsys.readouterr().out
    assert "AUC human vs machine masks 0.700" in told
    assert ("d does not follow true IoU here" in told, BY_QUALITY in told) == (distrusted, by_quality)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (12_000, "3 h 20 min"), (190_000, "2 d 4 h")],
)
def test_durations_are_told_in_two_units_at_most(seconds, words):
    assert duration(seconds) == words
