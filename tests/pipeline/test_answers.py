import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

from pipeline import answers as module
from pipeline.answers import TIER, AnswerStore, Asked, Sums, new_record
from pipeline.errors import InputError, RunFailed
from pipeline.store import RunStore
from stages.llm import Answer


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCAL_SECONDS", 0.0)
    monkeypatch.setattr(module, "REMOTE_SECONDS", 0.0)
    return str(tmp_path / "answers") if request.param == "local" else f"fsspec+memory://{tmp_path.name}/answers"


def asked(number):
    return Asked(hashlib.sha256(str(number).encode()).hexdigest(), "simplify", "0" * 8)


def answer(text="a cup", tokens=(10, 2)):
    return Answer(text, "stop", None, *tokens)


def record(number, said=None, run="run", **fields):
    made = new_record(run, "demo", "model", asked(number), said, requests=1, batch=False)
    return made.model_copy(update=fields)


def put_each(store, numbers, run="run"):
    """Each in a segment of its own."""
    for number in numbers:
        store.put(record(number, answer(f"answer {number}"), run))
        store.flush()


def found(folder, numbers):
    store = AnswerStore(folder)
    texts = [said and said.text for said in (store.find(asked(number).key) for number in numbers)]
    store.close()
    return texts


def segments(folder):
    return RunStore(folder).files("segments")


def test_an_answer_is_found_by_a_later_run_as_it_was_given(folder):
    store = AnswerStore(folder)
    given = Answer("« tasse »\n \ud83d half, \0 and \u2028", "stop", "no", 7, 3)
    store.put(record(1, given))
    store.close()
    store = AnswerStore(folder)
    assert store.find(asked(1).key) == Answer(**{**vars(given), "cached": True})
    assert store.find(asked(2).key) is None
    store.close()


def test_an_answer_is_found_at_once(folder):
    store = AnswerStore(folder)
    store.put(record(1, answer()))
    assert store.find(asked(1).key).text == "a cup"
    store.close()


def test_an_answer_is_on_storage_when_flush_returns(folder):
    store = AnswerStore(folder)
    store.put(record(1, answer()))
    store.flush()
    assert found(folder, [1]) == ["a cup"]
    store.close()


def test_of_several_answers_the_newest_counts_and_one_can_ask_for_newer(folder):
    store = AnswerStore(folder)
    for text, at in [("new", 200.0), ("old", 100.0)]:
        store.put(record(1, answer(text), at=at))
    store.put(record(1, None, at=300.0))
    assert store.find(asked(1).key).text == "new"
    assert store.find(asked(1).key, since=200.0).text == "new"
    assert store.find(asked(1).key, since=201.0) is None
    store.close()
    assert found(folder, [1]) == ["new"]


def test_sums_are_of_one_run_and_count_given_up_questions(folder):
    store = AnswerStore(folder)
    store.put(record(1, answer()))
    store.put(record(2, None, requests=9))
    store.put(record(3, answer(), batch=True))
    store.put(record(4, answer(), run="other"))
    store.close()
    store = AnswerStore(folder)
    assert sorted(store.sums("run")) == [
        Sums("demo", "simplify", False, requests=10, answers=1, input_tokens=10, output_tokens=2),
        Sums("demo", "simplify", True, requests=1, answers=1, input_tokens=10, output_tokens=2),
    ]
    store.close()


def test_means_are_of_the_answers_whose_tokens_were_counted(folder):
    store = AnswerStore(folder)
    for number, said in enumerate([answer(tokens=(10, 2)), answer(tokens=(20, 3)), answer(tokens=(0, 0)), None]):
        store.put(record(number, said))
    assert store.means("simplify") == (2, 15.0, 2.5)
    assert store.means("other") is None
    store.close()


def test_small_files_are_merged_while_a_run_writes(folder):
    numbers = range(2 * TIER + 3)
    store = AnswerStore(folder)
    put_each(store, numbers)
    store.close()
    assert len(segments(folder)) == 5
    assert found(folder, numbers) == [f"answer {number}" for number in numbers]


def test_a_merge_stops_at_full_files(folder, monkeypatch):
    monkeypatch.setattr(module, "FULL_BYTES", 4 * len(record(1, answer("answer 1")).line))
    store = AnswerStore(folder)
    put_each(store, range(TIER))
    store.close()
    assert sum(name.startswith("full-") for name in segments(folder)) in (TIER // 4, TIER // 4 - 1)
    assert len(segments(folder)) <= TIER // 4 + 1
    assert found(folder, range(TIER)) == [f"answer {number}" for number in range(TIER)]


def test_what_killed_runs_left_is_merged_when_a_store_opens(folder):
    for start in range(0, 40, 10):
        store = AnswerStore(folder)
        put_each(store, range(start, start + 10))
        store.close()
    assert len(segments(folder)) == 40
    assert found(folder, range(40)) == [f"answer {number}" for number in range(40)]
    assert len(segments(folder)) == 1
    assert found(folder, range(40)) == [f"answer {number}" for number in range(40)]


def test_a_merge_that_was_killed_before_it_deleted_doubles_nothing(folder):
    store = AnswerStore(folder)
    put_each(store, range(5))
    store.close()
    plain = RunStore(folder)
    lines = b"".join(plain.read(f"segments/{name}") for name in segments(folder))
    plain.write(f"segments/part-{uuid.uuid4().hex}.jsonl", lines)
    store = AnswerStore(folder)
    assert [sums.requests for sums in store.sums("run")] == [5]
    store.close()


def test_a_merge_that_cannot_be_written_keeps_the_small_files(folder, monkeypatch, caplog):
    write = RunStore.write

    def small_only(self, name, data):
        if data.count(b"\n") > 1:
            raise OSError(28, "No space left on device")
        return write(self, name, data)

    monkeypatch.setattr(RunStore, "write", small_only)
    store = AnswerStore(folder)
    put_each(store, range(TIER))
    store.close()
    assert "many small files" in caplog.text
    assert found(folder, range(TIER)) == [f"answer {number}" for number in range(TIER)]


def test_two_runs_that_write_and_merge_at_once_lose_nothing(folder):
    first, second = AnswerStore(folder), AnswerStore(folder)
    for number in range(0, 80, 2):
        put_each(first, [number], "first")
        put_each(second, [number + 1], "second")
        if number % 20 == 0:
            AnswerStore(folder).close()
    first.close()
    second.close()
    assert found(folder, range(80)) == [f"answer {number}" for number in range(80)]
    store = AnswerStore(folder)
    assert [[sums.requests for sums in store.sums(run)] for run in ("first", "second")] == [[40], [40]]
    store.close()


def test_reading_survives_a_merge_by_another_run(folder, monkeypatch):
    store = AnswerStore(folder)
    put_each(store, range(3))
    store.close()
    names = [f"segments/{name}" for name in segments(folder)]
    plain = RunStore(folder)
    listing = RunStore.files

    def files_then_merge(self, name):
        listed = listing(self, name)
        if all(plain.read(each) is not None for each in names):
            plain.write(f"segments/part-{'a' * 32}.jsonl", b"".join(plain.read(each) for each in names))
            plain.delete(names)
        return listed

    monkeypatch.setattr(RunStore, "files", files_then_merge)
    assert found(folder, range(3)) == ["answer 0", "answer 1", "answer 2"]


def test_torn_and_foreign_files_cost_their_lines_only_and_stay(folder, caplog):
    plain = RunStore(folder)
    good = record(1, answer()).line
    torn = f"segments/part-{'a' * 32}.jsonl"
    plain.write(torn, good + b'{"id": "12\n[1]\n\xff\xfe\n' + json.dumps({"id": 10**40}).encode())
    plain.write("segments/README.txt", b"hello")
    store = AnswerStore(folder)
    put_each(store, range(10, 10 + TIER + 1))
    store.close()
    assert found(folder, [1, 10]) == ["a cup", "answer 10"]
    assert "4 lines are no answers" in caplog.text
    assert plain.read("segments/README.txt") == b"hello" and plain.read(torn) is not None


def test_an_answer_that_cannot_be_written_ends_the_run_and_close_tries_again(tmp_path, monkeypatch):
    store = AnswerStore(str(tmp_path / "answers"))
    write = RunStore.write

    def full(self, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunStore, "write", full)
    store.put(record(1, answer()))
    with pytest.raises(RunFailed, match="No space left"):
        store.flush()
    with pytest.raises(RunFailed, match="No space left"):
        store.put(record(2, answer()))
    monkeypatch.setattr(RunStore, "write", write)
    store.close()
    assert found(str(tmp_path / "answers"), [1, 2]) == ["a cup", "a cup"]


@pytest.mark.parametrize("bad", ["nosuch://x/y", "file"])
def test_a_folder_that_cannot_be_used_is_bad_input(bad, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="'answers'"):
        AnswerStore(bad if "://" in bad else str(tmp_path / "file" / "answers"))


def test_answers_reach_a_disk_within_a_moment_and_survive_a_kill(tmp_path):
    folder = str(tmp_path / "answers")
    script = textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = {[str(Path.cwd())]!r}
        from tests.pipeline.test_answers import AnswerStore, answer, record
        store = AnswerStore({folder!r})
        for number in range(10**6):
            store.put(record(number, answer()))
            print(number, time.time(), flush=True)
            time.sleep(0.001)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.time() + 30
        while len(segments(folder)) < 20 and time.time() < deadline:
            time.sleep(0.05)
        killed = time.time()
        os.kill(process.pid, signal.SIGKILL)
        given = [line.split() for line in process.stdout.read().splitlines() if line.count(" ") == 1]
    old = [int(number) for number, at in given if float(at) < killed - 0.3]
    assert old and None not in found(folder, old)
    assert len(segments(folder)) < len(given) / 4
