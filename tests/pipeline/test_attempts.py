from string import ascii_lowercase

import pytest
import ray

from pipeline import attempts
from pipeline.errors import RunFailed

PART = ("candidates/one", 3)


@pytest.fixture
def record(monkeypatch):
    """The record itself, without its actor; `lost` are nodes that are no more."""
    lost: set[str] = set()
    # In Ray itself: after runs in this process, the class may have its own copy of this module's functions.
    nodes = [{"NodeID": node, "Alive": True} for node in ascii_lowercase]
    monkeypatch.setattr(ray, "nodes", lambda: [node for node in nodes if node["NodeID"] not in lost])
    made = attempts.Attempts.__ray_metadata__.modified_class()
    made.lost = lost
    return made


def test_the_first_death_makes_a_part_suspicious_and_the_second_finds_the_image(record):
    assert not record.begin(PART, "a").suspicious
    history = record.begin(PART, "a")
    assert history.suspicious and not history.deaths
    record.working_on(PART, "x.png")
    assert record.begin(PART, "a").deaths == {"x.png": 2}


def test_lost_nodes_blame_no_image_however_often(record):
    for node in "abcdef":
        assert not record.begin(PART, node).suspicious
        record.working_on(PART, "x.png")
        record.lost.add(node)


def test_a_call_that_hung_is_told_from_a_death(record):
    record.begin(PART, "a")
    record.hung(PART, 4.0)
    assert record.begin(PART, "a").hung == {}
    record.working_on(PART, "x.png")
    record.hung(PART, 4.0)
    history = record.begin(PART, "a")
    assert history.deaths == {"x.png": 2} and history.hung == {"x.png": 4.0}


def test_even_lost_nodes_end_a_part_that_is_begun_too_often(record):
    for _ in range(attempts.MAX_ATTEMPTS):
        record.begin(PART, "a")
        record.lost.add("a")
    with pytest.raises(RunFailed, match="died 10 times on shard 3"):
        record.begin(PART, "a")


def test_a_worker_that_dies_while_it_starts_is_given_up_unless_its_nodes_were_lost(record):
    for node in "abcde":
        record.starting("one", "worker", node)
        record.lost.add(node)
    record.starting("one", "worker", "f")
    record.starting("one", "worker", "f")
    record.starting("one", "worker", "f")
    with pytest.raises(RunFailed, match="a worker of one died 3 times while it started"):
        record.starting("one", "worker", "f")


def test_a_part_that_kills_workers_after_it_is_done_ends_the_run(record):
    for _ in range(attempts.MAX_TAKEN):
        record.taking(PART)
    with pytest.raises(RunFailed, match="the workers of candidates/one died 30 times around shard 3"):
        record.taking(PART)
