"""A kill before any single write or delete of a run, and what the next command makes of it.

The workers run in this process, so that each point can be hit; only Ray's scheduling is left out.
"""

import errno
import os
import shutil
import threading
from contextlib import nullcontext

import pandas as pd
import pytest
import ray
import yaml

from pipeline import engine, lock
from pipeline.attempts import Attempts
from pipeline.cli import main
from pipeline.frames import read
from pipeline.store import RunStore
from pipeline.train import chosen_pairs, gather, train_discriminator
from pipeline.unit_workers import worker_class
from pipeline.worker import Shard

pytestmark = [pytest.mark.faults, pytest.mark.slow]

KEYS = {"samples": "uuid", "candidates": "candidate_id", "scores": "candidate_id", "labels": "uuid"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Killer:
    """Counts the store's operations and kills before number `at`."""

    def __init__(self, monkeypatch):
        self.count, self.at = 0, -1
        write, delete = RunStore.write, RunStore.delete

        def counted_write(store, name, data):
            self.tick()
            return write(store, name, data)

        def counted_delete(store, names):
            for name in names:
                self.tick()
                delete(store, [name])

        monkeypatch.setattr(RunStore, "write", counted_write)
        monkeypatch.setattr(RunStore, "delete", counted_delete)

    def tick(self):
        # How often the lock is renewed meanwhile is up to the clock.
        if threading.current_thread() is not threading.main_thread():
            return
        self.count += 1
        if self.count == self.at:
            raise Killed

    def operations(self, arguments) -> int:
        """How many operations an undisturbed command takes."""
        self.count = 0
        assert main(arguments) == 0
        return self.count

    def kill(self, arguments, at) -> None:
        self.count, self.at = 0, at
        with pytest.raises(Killed):
            main(arguments)
        self.at = -1


@pytest.fixture(scope="module", autouse=True)
def session():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def train_here(spec, unit):
    pairs = chosen_pairs(spec, RunStore(spec.output))
    train_discriminator(spec, gather(spec, pairs, range(len(spec.plan.shards))))


@pytest.fixture
def killer(monkeypatch):
    def run_wave(spec, units, shards, wait_s):
        attempts = Attempts.remote()
        workers = [worker_class(unit.name)(spec, unit.name, attempts) for unit in units]
        for number in shards:
            shard = Shard(number)
            for worker in workers:
                shard = worker.work(shard)
            yield number, shard.rejects
        ray.kill(attempts)

    monkeypatch.setattr(engine, "ray_session", lambda address, waves: nullcontext())
    monkeypatch.setattr(engine, "run_wave", run_wave)
    monkeypatch.setattr(engine, "train_on_ray", train_here)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0)
    return Killer(monkeypatch)


@pytest.fixture
def dataset(drawn):
    drawn.lines = drawn.lines[:12]
    return drawn.write()


@pytest.fixture
def arguments(dataset, tmp_path):
    profile = {
        "shard_pairs": 4,
        "max_reject_share": 0.5,
        "experts": {"quarter": {"expert": "tests.helpers.killing_expert"}},
        "discriminator": {"epochs": 1, "folds": 2},
    }
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))

    def of(run, *more):
        given = ["--profile", str(tmp_path / "profile.yaml"), "--output", str(tmp_path / run)]
        return ["annotate", "--dataset", dataset.manifest, *given, *more]

    return of


def points(operations: int) -> list[int]:
    """Some of the points 1 … operations, the first and last and a spread between; all passed when last swept."""
    assert operations > 8
    return sorted({1, 2, *range(4, operations, max(1, operations // 5)), operations})


def tables(run) -> dict[str, pd.DataFrame]:
    return {table: read(str(run), table).sort_values(key, ignore_index=True) for table, key in KEYS.items()}


def assert_same(run, expected, scored=True):
    for table, frame in tables(run).items():
        columns = list(frame.columns) if scored or table not in ("scores", "labels") else [KEYS[table]]
        pd.testing.assert_frame_equal(frame[columns], expected[table][columns])
    assert read(str(run), "rejects").empty


def test_a_first_run_killed_anywhere_ends_as_if_it_had_not_been(killer, arguments, tmp_path):
    operations = killer.operations(arguments("whole"))
    expected = tables(tmp_path / "whole")
    for at in points(operations):
        killer.kill(arguments(f"run-{at}"), at)
        assert main(arguments(f"run-{at}")) == 0
        assert_same(tmp_path / f"run-{at}", expected)


def test_a_replay_of_rejects_killed_anywhere_loses_and_repeats_nothing(killer, arguments, dataset, tmp_path):
    assert main(arguments("whole")) == 0
    expected = tables(tmp_path / "whole")
    lost = dataset.folder / "images" / "01.png"
    kept = lost.read_bytes()

    lost.unlink()
    assert main(arguments("lacking")) == 0
    lost.write_bytes(kept)
    shutil.copytree(tmp_path / "lacking", tmp_path / "counted")
    for at in points(killer.operations(arguments("counted", "--retry-rejects"))):
        shutil.copytree(tmp_path / "lacking", tmp_path / f"run-{at}")
        killer.kill(arguments(f"run-{at}", "--retry-rejects"), at)
        assert main(arguments(f"run-{at}", "--retry-rejects")) == 0
        # The discriminator was trained without the lost image, so d may differ; the rows may not.
        assert_same(tmp_path / f"run-{at}", expected, scored=False)


def test_an_update_killed_anywhere_can_be_finished_or_taken_back(killer, arguments, dataset, tmp_path):
    lines = dataset.lines
    shorter = [*lines[:5], *lines[7:10]]

    def change(new):
        dataset.lines = new
        dataset.write()

    assert main(arguments("whole")) == 0
    expected = tables(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "counted")
    change(shorter)
    for at in points(killer.operations(arguments("counted", "--update"))):
        run = f"run-{at}"
        shutil.copytree(tmp_path / "whole", tmp_path / run)
        change(shorter)
        killer.kill(arguments(run, "--update"), at)
        if at % 2:
            assert main(arguments(run, "--update")) == 0
            assert len(read(str(tmp_path / run), "labels")) == len(shorter)
        change(lines)
        assert main(arguments(run, "--update")) == 0
        assert_same(tmp_path / run, expected)


def test_a_fresh_start_killed_anywhere_is_no_finished_run(killer, arguments, tmp_path):
    assert main(arguments("whole")) == 0
    expected = tables(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "counted")
    for at in points(killer.operations(arguments("counted", "--fresh"))):
        shutil.copytree(tmp_path / "whole", tmp_path / f"run-{at}")
        killer.kill(arguments(f"run-{at}", "--fresh"), at)
        assert main(arguments(f"run-{at}")) == 0
        assert_same(tmp_path / f"run-{at}", expected)


def test_a_disk_that_fills_up_anywhere_ends_the_command_with_one_line_and_the_same_command_goes_on(
    killer, arguments, tmp_path, monkeypatch, capsys
):
    synced, fsync = [0], os.fsync

    def full(at):
        def write_out(handle):
            synced[0] += threading.current_thread() is threading.main_thread()
            if synced[0] >= at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        synced[0] = 0
        monkeypatch.setattr(os, "fsync", write_out)

    full(at=10_000)
    assert main(arguments("whole")) == 0
    expected = tables(tmp_path / "whole")
    for at in (1, synced[0] // 2):
        run = tmp_path / f"run-{at}"
        full(at)
        capsys.readouterr()
        assert main(arguments(run.name)) in (2, 3)
        said = capsys.readouterr().err
        assert f"{run}" in said and "No space left on device" in said
        assert "Traceback" not in said
        full(at=10_000)
        assert main(arguments(run.name)) == 0
        assert_same(run, expected)
