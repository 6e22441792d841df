"""Runs on several Ray nodes with logical GPUs: where the workers are, and nodes that are lost."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline import engine
from pipeline.cli import main
from pipeline.frames import read
from tests.helpers.counting_expert import calls
from tests.helpers.ray_nodes import RayNodes

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes():
    """A head and two nodes with a GPU each, `a` and `b`."""
    cluster = RayNodes(head_cpus=4)
    ids = {name: cluster.add(name, cpus=2, gpus=1) for name in "ab"}
    yield cluster, ids
    cluster.close()


@pytest.fixture(autouse=True)
def on_nodes(nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nodes[0].address)


def counting(notes: Path, seconds: float, **pool) -> dict:
    """An expert of two workers, who begin only when both are there: which starts first is up to the machine."""
    options = {"notes": str(notes), "seconds": seconds, "together": 2}
    return {"expert": "tests.helpers.counting_expert", "options": options, "pool": {"cpus": 0.5} | pool}


def arguments(dataset, run: Path, shard_pairs: int, experts: dict) -> list[str]:
    small = {"cpus": 0.25}
    profile = {
        "shard_pairs": shard_pairs,
        "experts": experts,
        "discriminator": {"epochs": 1, "folds": 2},
        "pools": {"samples": small, "scores": small, "labels": small, "discriminator": small},
    }
    path = run.parent / "profile.yaml"
    path.write_text(yaml.safe_dump(profile))
    return ["annotate", "--dataset", dataset.manifest, "--profile", str(path), "--output", str(run)]


def assert_every_pair_once(run: Path, pairs: int = 24) -> None:
    for table in ("samples", "candidates", "labels"):
        frame = read(str(run), table)
        assert len(frame) == pairs and frame.uuid.is_unique
    assert read(str(run), "rejects").empty


def assert_shared(notes: Path) -> None:
    """Two workers had the twelve shards of an image each, neither fewer than a quarter: one of them may be slower."""
    shards = Counter(call.pid for call in calls(notes))
    assert len(shards) == 2 and sum(shards.values()) == 12
    assert min(shards.values()) >= 3


def test_experts_that_do_not_fit_together_run_in_waves_each_spread_over_the_gpus(nodes, drawn, tmp_path, capfd):
    first, share, second = (tmp_path / name for name in ("first", "share", "second"))
    experts = {
        "first": counting(first, 0.5, gpus=0.5, workers=1, max_workers=2),
        "share": counting(share, 0.5, gpus=0.5, workers=2),
        "second": counting(second, 0.5, gpus=1, workers=2),
    }
    assert main(arguments(drawn, tmp_path / "run", 2, experts)) == 0
    for name in experts:
        candidates = read(str(tmp_path / "run"), "candidates")
        assert (candidates.expert == name).sum() == 24
    told = capfd.readouterr().err
    assert "ground 1/2" in told and "ground 2/2" in told
    # The second wave has the GPUs that the first gave back.
    assert max(call.end for call in [*calls(first), *calls(share)]) < min(call.begin for call in calls(second))
    for notes in (first, share, second):
        assert_shared(notes)
    assert {call.node for call in calls(second)} == set(nodes[1].values())


def test_of_two_nodes_one_killed_and_replaced_the_other_gone_for_good_the_run_ends(
    nodes, drawn, tmp_path, capfd, monkeypatch
):
    cluster, _ = nodes
    # Longer than a worker takes to start on a busy machine, and shorter than one takes to do the seven shards left.
    monkeypatch.setattr(engine, "WAIT_FOR_WORKERS_S", 12)
    monkeypatch.setattr(engine, "WATCH_ROOM_S", 0.5)
    run, notes = tmp_path / "run", tmp_path / "notes"

    def until(commits: int) -> None:
        while len(list((run / "done/candidates/one").glob("*.json"))) < commits:
            time.sleep(0.05)

    def disturb() -> None:
        until(2)
        cluster.kill("a")
        cluster.add("c", cpus=2, gpus=1)
        until(5)
        cluster.terminate("b")

    disturber = threading.Thread(target=disturb)
    disturber.start()
    assert main(arguments(drawn, run, 2, {"one": counting(notes, 3.0, gpus=1, workers=2)})) == 0
    disturber.join()
    told = capfd.readouterr().err
    assert "going on with 1 of 2 of candidates/one" in told
    assert_every_pair_once(run)
    made = calls(notes)
    assert len({call.node for call in made}) == 3
    # A shard is one image here: a lost node costs the one that its worker was at, the new plan the one begun elsewhere.
    assert len(made) <= 12 + 2 + 1
