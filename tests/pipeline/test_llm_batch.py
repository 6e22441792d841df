import asyncio
import json
import math
from itertools import count

import httpx2
import pytest

from pipeline import llm_batch
from pipeline.errors import InputError
from pipeline.llm_batch import CollectingAsker, Deferred
from pipeline.store import RunStore
from stages.llm import Answer, Price
from tests.helpers.batch_run import KEY, SCHEMA, Run, config_for, echo, questions_of, set_up
from tests.helpers.batch_server import End, serve_batches
from tests.helpers.llm_server import Reply


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    set_up(monkeypatch)


def test_answers_come_back_to_their_questions_with_their_tokens(tmp_path):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path)
        assert run() == 5
    assert run.whole()
    assert run.kept[run.questions[0].key] == Answer("about the dog 0", "stop", None, 7, 3)
    assert [tuple(asked) for asked in run.settled] == [(q.key, "simplify", "hash") for q in reversed(run.questions)]


def test_a_batch_asks_what_would_be_asked_live_and_names_its_window(tmp_path):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path, number=1)
        run()
        [batch] = server.batches.values()
        [line] = server.requests(batch)
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")
    assert (line["custom_id"], line["method"], line["url"]) == (run.questions[0].key, "POST", "/v1/chat/completions")
    assert line["body"]["model"] == "scripted" and line["body"]["messages"] == list(run.questions[0].messages)
    assert line["body"]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_the_structured_mode_of_the_profile_holds_in_a_batch(tmp_path):
    with serve_batches(echo) as server:
        Run(server, tmp_path, number=1, structured="text")()
        [line] = server.requests(server.batches["batch_0"])
    assert "response_format" not in line["body"]


def test_nothing_to_ask_makes_no_batch_and_a_question_twice_is_asked_once(tmp_path):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path, number=0)
        assert run() == 0 and not server.calls
        run.questions = questions_of(run.config, 2) * 2
        assert run() == 2
        assert list(server.asked.values()) == [1, 1]


@pytest.mark.parametrize("limits", [{"MAX_REQUESTS": 2}, {"MAX_BYTES": 1000}])
def test_a_batch_holds_no_more_than_the_interface_takes(tmp_path, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(llm_batch, name, value)
    with serve_batches(echo) as server:
        run = Run(server, tmp_path)
        run()
        lines = [server.requests(batch) for batch in server.batches.values()]
        assert [len(asked) for asked in lines] == [2, 2, 1]
        sizes = [len(server.contents[batch["input_file_id"]]) for batch in server.batches.values()]
        assert all(size <= llm_batch.MAX_BYTES for size in sizes)
    assert run.whole()


class Killed(BaseException):
    """A SIGKILL: nothing of the code under test gets hold of it."""


class Steps:
    """Kills the run at a step, before or after each request, write, deletion and answer kept."""

    def __init__(self):
        self.left = math.inf

    def done(self):
        self.left -= 1
        if self.left == 0:
            raise Killed

    def around(self, monkeypatch, owner, name):
        real = getattr(owner, name)

        def step(*arguments, **options):
            self.done()
            result = real(*arguments, **options)
            self.done()
            return result

        monkeypatch.setattr(owner, name, step)


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.setattr(llm_batch, "MAX_REQUESTS", 3)
    steps = Steps()
    steps.around(monkeypatch, httpx2.Client, "send")
    steps.around(monkeypatch, RunStore, "write")
    steps.around(monkeypatch, RunStore, "delete")
    return steps


def _killed(run, steps, at):
    steps.left = at
    try:
        run()
    except Killed:
        return True
    finally:
        steps.left = math.inf
    return False


def test_no_question_is_in_two_batches_wherever_the_run_is_killed(tmp_path, steps):
    for at in count(1):
        with serve_batches(echo) as server:
            server.page = 1
            run = Run(server, tmp_path / str(at), number=4, done=steps.done)
            killed = _killed(run, steps, at)
            run()
            assert set(server.asked.values()) == {1} and run.whole(), f"killed at step {at}"
            assert all(name.endswith(".json") for name in run.folder() if not name.startswith("_tmp"))
        if not killed:
            break
    assert at > 50


@pytest.mark.parametrize("pace", [7, 11, 12])
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(tmp_path, steps, pace):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path, number=4, done=steps.done)
        kills = sum(1 for at in range(pace, 60) if _killed(run, steps, at))
        assert kills > 3
        assert set(server.asked.values()) == {1} and run.whole()


@pytest.mark.parametrize("status", ["expired", "cancelled", "failed"])
def test_a_batch_that_ends_early_gives_what_it_has_and_is_not_tried_again(tmp_path, capsys, status):
    with serve_batches(echo) as server:
        server.end = lambda number: End(status, answered=2, code="some_limit" if status == "failed" else None)
        run = Run(server, tmp_path)
        assert run() == 2
        assert run() == 0 and len(server.batches) == 1
    assert len(run.kept) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "without an answer" in line]
    assert f"batch_0 {status}: 3 questions without an answer" in line and f"batch_{status}: 3" in line
    assert ("some_limit: 1" in line) == (status == "failed")


def test_a_request_that_fails_in_its_batch_costs_no_other(tmp_path, capsys):
    def second_fails(request):
        return Reply("no", status=500) if request.data["instruction"].endswith("1") else echo(request)

    with serve_batches(second_fails) as server:
        run = Run(server, tmp_path)
        assert run() == 4
    assert run.questions[1].key not in run.kept
    assert "1 questions without an answer (HTTP 500: 1); asked live" in capsys.readouterr().err


def test_lines_that_are_none_of_ours_are_passed_over(tmp_path):
    completion = {"choices": [{"message": {"content": "something else"}, "finish_reason": "stop"}]}
    with serve_batches(echo) as server:
        run = Run(server, tmp_path)
        names = ["a stranger", run.questions[0].key]
        lines = [{"custom_id": name, "response": {"status_code": 200, "body": completion}} for name in names]
        junk = ("", "{", "[]", "\x00\ufffd", *map(json.dumps, lines), json.dumps({"custom_id": names[1]}))
        server.end = lambda number: End(junk=junk)
        assert run() == 5
    assert run.whole()


def test_a_completion_that_is_none_costs_its_question_only(tmp_path):
    with serve_batches(
        lambda request: Reply(raw='{"choices": "?"}') if request.number == 0 else echo(request)
    ) as server:
        run = Run(server, tmp_path)
        assert run() == 4


def test_answers_that_the_endpoint_has_deleted_are_asked_live(tmp_path, capsys):
    with serve_batches(echo) as server:
        server.refuse = lambda method, path: 404 if path.endswith("/content") else None
        run = Run(server, tmp_path)
        assert run() == 0
    assert "5 questions without an answer (no reason given)" in capsys.readouterr().err


def test_the_budget_is_not_exceeded_by_what_batches_could_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(llm_batch, "WORTH_A_BATCH", 1)
    price = Price(input=0, output=1e6)
    with serve_batches(echo) as server:
        run = Run(server, tmp_path, price=price.model_dump(), budget=100, max_tokens=20)
        run.money = lambda: 100 - sum(price.of(0, answer.output_tokens, batch=True) for answer in run.kept.values())
        run.questions = questions_of(run.config, 70)
        run()
        sizes = [len(server.requests(batch)) for batch in server.batches.values()]
    # 10 at the most for each, 1.5 in the end: 100 pays for 10, then 85 for 8, 73 for 7, ...
    assert sizes[:3] == [10, 8, 7] and sum(sizes) == len(run.kept)
    assert 0 <= run.money() < 10
    assert "the budget is too low for another batch" in capsys.readouterr().err


def test_the_end_of_the_budget_is_left_to_questions_asked_live(tmp_path):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path, number=30, price={"input": 0, "output": 1e6}, budget=100, max_tokens=20)
        run.money = lambda: 100.0
        assert run() == 10 and len(server.batches) == 1


def test_a_damaged_state_file_is_named(tmp_path):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path)
        run.store.write("batches/0.json", b"{")
        with pytest.raises(InputError, match=r"batches/0\.json is damaged"):
            run()


def test_no_key_gets_into_the_files_or_the_output(tmp_path, capsys):
    with serve_batches(echo) as server:
        run = Run(server, tmp_path)
        run()
    [state] = run.folder().values()
    assert json.loads(state)["left"] == [] and KEY not in state
    written = capsys.readouterr()
    assert "batch batch_0 of 5 questions: completed" in written.err and KEY not in written.err + written.out


def _collect(stored, *asked):
    async def find(key):
        return stored.get(key)

    asker = CollectingAsker(find)

    async def all_asked():
        return await asyncio.gather(*(asker.ask(q, anew) for q, anew in asked), return_exceptions=True)

    return asker, asyncio.run(all_asked())


def test_the_pre_pass_gives_stored_answers_and_notes_the_other_questions_once():
    first, second = questions_of(config_for("http://h/v1"), 2)
    answer = Answer("there", "stop", None, 5, 5)
    asker, got = _collect({first.key: answer}, (first, False), (second, False), (second, False))
    assert got[0].text == "there" and got[0].cached
    assert [type(deferred) for deferred in got[1:]] == [Deferred, Deferred]
    assert asker.taken() == [second]
    assert asker.taken() == []


def test_an_answer_wanted_anew_is_left_to_the_real_pass_where_there_is_one():
    first, second = questions_of(config_for("http://h/v1"), 2)
    asker, got = _collect({first.key: Answer("there", "stop", None, 5, 5)}, (first, True), (second, True))
    assert [type(deferred) for deferred in got] == [Deferred, Deferred]
    assert asker.taken() == [second]
