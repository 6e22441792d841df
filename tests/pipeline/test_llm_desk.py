import asyncio
import hashlib

import pytest

from pipeline.answers import Asked
from pipeline.errors import BudgetSpent, InputError, RunFailed
from pipeline.llm_desk import LlmDesk, Worker, answers_beside
from stages.asker import EndpointAsker
from stages.llm import Admission, Answer, Claim, LlmConfig, Question
from tests.helpers.llm_server import Reply, serve
from tests.helpers.local_desk import LocalDesk

ONE, TWO, ONE_AGAIN = Worker("one", "1"), Worker("two", "1"), Worker("one", "2")
SAID = Answer("a cup", "stop", None, 100, 20)
CACHED = Answer("a cup", "stop", None, 100, 20, cached=True)
PRICE = {"input": 1000.0, "output": 1000.0}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_desk(tmp_path, clock):
    """Opens a desk of this run, or of another, after closing the one before."""
    desks = []

    def opened(run="run", **config):
        if desks:
            desks.pop().close()
        settings = LlmConfig(base_url="http://localhost:1/v1", model="m", **config)
        desks.append(LlmDesk(settings, str(tmp_path / run), "demo", clock))
        return desks[-1]

    yield opened
    for desk in desks:
        desk.close()


def asked(name):
    return Asked(hashlib.sha256(name.encode()).hexdigest(), "simplify", "0" * 8)


A, B = asked("a"), asked("b")


def answer(desk, question=A, worker=ONE, requests=1):
    assert desk.claim(question.key, worker) == Claim(None)
    assert desk.admit(question.key, worker, 50) == Admission(True)
    desk.settle(question, worker, SAID, requests)


def test_an_answer_is_given_to_all_later_claims_of_this_and_other_runs(open_desk):
    desk = open_desk()
    answer(desk)
    assert desk.claim(A.key, TWO) == Claim(CACHED) and desk.find(A.key) == CACHED
    other = open_desk("other")
    assert other.claim(A.key, TWO) == Claim(CACHED)
    assert other.ledger() == []


def test_find_claims_nothing(open_desk):
    desk = open_desk()
    assert desk.find(A.key) is None
    assert desk.claim(A.key, ONE) == Claim(None)


def test_a_question_that_a_worker_asks_is_waited_for(open_desk):
    desk = open_desk()
    assert desk.claim(A.key, ONE) == Claim(None)
    for worker in (TWO, ONE):
        said, wait = desk.claim(A.key, worker)
        assert said is None and 0.2 <= wait <= 1
    assert desk.claim(B.key, TWO) == Claim(None)


def test_a_claim_that_ended_without_an_answer_is_free_and_its_requests_count(open_desk):
    desk = open_desk()
    desk.claim(A.key, ONE)
    desk.settle(A, ONE, None, 9)
    assert desk.claim(A.key, TWO) == Claim(None)
    desk.settle(A, TWO, None, 0)
    for opened in (desk, open_desk()):
        (row,) = opened.ledger()
        assert (row["requests"], row["retries"], row["answers"]) == (9, 9, 0)


def test_a_worker_started_again_gets_what_it_had_claimed_and_so_do_others(open_desk):
    desk = open_desk()
    desk.claim(A.key, ONE)
    desk.claim(B.key, ONE)
    assert desk.claim(A.key, ONE_AGAIN) == Claim(None)
    assert desk.claim(A.key, TWO).wait > 0
    assert desk.claim(B.key, TWO) == Claim(None)


def test_a_silent_workers_claim_expires_and_its_late_answer_is_kept(open_desk, clock):
    desk = open_desk(timeout=10)
    desk.claim(A.key, ONE)
    clock.now += 79
    assert desk.claim(A.key, TWO).wait > 0
    clock.now += 2
    assert desk.claim(A.key, TWO) == Claim(None)
    desk.settle(A, ONE, SAID, 1)
    assert desk.claim(A.key, Worker("three", "1")) == Claim(CACHED)
    assert desk.ledger()[0]["answers"] == 1


def test_a_worker_that_waits_for_its_turn_or_does_other_work_is_alive(open_desk, clock):
    desk = open_desk(timeout=10, requests_per_minute=1)
    desk.claim(A.key, ONE)
    desk.claim(B.key, ONE)
    assert [desk.admit(each.key, ONE, 1).wait for each in (A, B)] == [0, 60]
    clock.now += 139
    assert desk.claim(B.key, TWO).wait > 0
    desk.claim(asked("c").key, ONE)
    clock.now += 79
    assert desk.claim(B.key, TWO).wait > 0


def test_anew_is_asked_once_per_run(open_desk):
    answer(open_desk())
    desk = open_desk()
    assert desk.claim(A.key, ONE, anew=True) == Claim(None)
    assert desk.claim(A.key, TWO, anew=True).wait > 0
    desk.settle(A, ONE, SAID, 1)
    assert desk.claim(A.key, TWO, anew=True) == Claim(CACHED)
    assert desk.ledger()[0]["answers"] == 2


def test_the_ledger_goes_on_where_the_run_was_cut_off(open_desk, tmp_path):
    desk = open_desk(price=PRICE)
    answer(desk, requests=3)
    before = desk.ledger()
    assert before[0]["money"] == pytest.approx(0.12) and before[0]["retries"] == 2
    assert open_desk(price=PRICE).ledger() == before
    assert open_desk("other", price=PRICE).ledger() == []


def test_batches_cost_their_share_and_are_settled_once(open_desk):
    desk = open_desk(price=PRICE)
    answer(desk, B)
    desk.settle_batch([(A, SAID), (B, SAID), (A, SAID)])
    desk.settle_batch([(A, SAID)])
    (row,) = desk.ledger()
    assert row["requests"] == 2 and row["money"] == pytest.approx(0.12 * 1.5)
    assert desk.claim(A.key, ONE) == Claim(CACHED)


def test_requests_are_spread_over_the_minute(open_desk):
    desk = open_desk(requests_per_minute=30)
    waits = [desk.admit(asked(str(number)).key, ONE, 10).wait for number in range(5)]
    assert waits == [0, 2, 4, 6, 8]


def test_tokens_hold_requests_back_until_the_answers_say_what_they_took(open_desk):
    desk = open_desk(tokens_per_minute=600, max_tokens=100)
    desk.claim(A.key, ONE)
    assert desk.admit(A.key, ONE, 1000) == Admission(True)
    go, wait = desk.admit(B.key, ONE, 1000)
    assert not go and wait > 100
    desk.settle(A, ONE, Answer("", "stop", None, 5, 5), 1)
    assert desk.admit(B.key, ONE, 1000).go


def test_the_budget_stops_the_run_before_it_is_exceeded_and_a_larger_one_goes_on(open_desk):
    # A question may cost 500 hidden tokens, 50 bytes and 16 tokens, at 1000 a million: 0.566.
    desk = open_desk(price=PRICE, budget=1.2, max_tokens=16)
    for each in (A, B):
        desk.claim(each.key, ONE)
        assert desk.admit(each.key, ONE, 50).go
    assert desk.admit(A.key, ONE, 50).go
    assert desk.admit(asked("c").key, ONE, 50) == Admission(False, 0.5)
    desk.settle(A, ONE, Answer("a cup", "stop", None, 410, 10), 1)
    desk.settle(B, ONE, Answer("a cup", "stop", None, 410, 10), 1)
    for opened in (desk, open_desk(price=PRICE, budget=1.2, max_tokens=16)):
        with pytest.raises(BudgetSpent, match=r"^0\.8400 of the budget"):
            opened.admit(asked("c").key, ONE, 50)
    assert open_desk(price=PRICE, budget=1.41, max_tokens=16).admit(asked("c").key, ONE, 50).go


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_budget_knows_of_longer_answers_in_extra(open_desk, name):
    desk = open_desk(price=PRICE, budget=1.0, max_tokens=16, extra={name: 1000})
    with pytest.raises(BudgetSpent, match=r"could cost 1\.5500"):
        desk.admit(A.key, ONE, 50)


def test_what_a_dead_worker_had_put_aside_is_free_again(open_desk, clock):
    desk = open_desk(price=PRICE, budget=0.6, max_tokens=16, timeout=10)
    desk.claim(A.key, ONE)
    assert desk.admit(A.key, ONE, 50).go
    assert not desk.admit(B.key, TWO, 50).go
    clock.now += 81
    assert not desk.admit(B.key, TWO, 50).go
    assert desk.admit(B.key, TWO, 50).go


def test_a_dead_endpoint_is_tried_by_one_and_its_failures_do_not_count(open_desk, clock):
    desk = open_desk(outage_minutes=1)
    counted = [desk.failed(asked(str(number)).key, ONE, True) for number in range(10)]
    assert counted == [True] * 9 + [False]
    assert not desk.admit(A.key, ONE, 1).go
    clock.now += 1
    assert desk.admit(A.key, ONE, 1).go and not desk.admit(B.key, TWO, 1).go
    desk.settle(A, ONE, SAID, 1)
    assert desk.admit(B.key, TWO, 1).go


def test_an_outage_that_lasts_ends_the_run(open_desk):
    desk = open_desk(outage_minutes=0)
    for number in range(10):
        desk.failed(asked(str(number)).key, ONE, True)
    with pytest.raises(RunFailed, match="has been down"):
        desk.admit(A.key, ONE, 1)


def test_a_folder_that_cannot_be_used_is_bad_input(open_desk, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="'answers'"):
        open_desk(answers=str(tmp_path / "file" / "answers"))


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("/data/runs/demo", "/data/runs/answers"),
        ("/data/runs/demo/", "/data/runs/answers"),
        ("s3://bucket/runs/demo", "s3://bucket/runs/answers"),
        ("s3://bucket/demo/?region=eu", "s3://bucket/answers?region=eu"),
        ("s3://bucket", "s3://bucket/answers"),
        ("file:///data/demo", "file:///data/answers"),
        ("fsspec+memory://x/demo", "fsspec+memory://x/answers"),
    ],
)
def test_answers_lie_beside_the_run(output, folder):
    assert answers_beside(output) == folder


def test_a_local_desk_is_the_desk_of_one_worker(open_desk):
    desk = open_desk()
    question = Question("simplify", "0" * 8, ({"role": "user", "content": "hello"},), {}, {})

    async def ask(worker):
        local = LocalDesk(desk, worker)
        claim = await local.claim(question.key)
        if claim.answer is None and claim.wait == 0:
            assert await local.admit(question.key, 5) == Admission(True)
            assert await local.failed(question.key, down=False)
            await local.settle(question, SAID, 2)
        return claim.answer

    assert asyncio.run(ask("one")) is None
    assert asyncio.run(ask("two")) == CACHED
    assert desk.ledger()[0]["retries"] == 1


def test_what_waits_for_money_does_not_keep_a_failed_question_from_its_next_try(open_desk):
    desk = open_desk(price=PRICE, budget=1.0, max_tokens=64, concurrency=1)

    def busy_once(request):
        return Reply("busy", status=429) if request.number == 0 else Reply("{}", input_tokens=1, output_tokens=1)

    async def ask(base_url):
        config = LlmConfig(base_url=base_url, model="m", max_tokens=64, concurrency=1)
        asker = EndpointAsker(config, LocalDesk(desk))
        questions = [
            Question("simplify", "0" * 8, ({"role": "user", "content": text},), {}, {})
            for text in ("one", "two", "three")
        ]
        async with asyncio.timeout(20):
            found = await asyncio.gather(*map(asker.ask, questions))
        await asker.client.close()
        return found

    with serve(busy_once) as server:
        assert [found.text for found in asyncio.run(ask(server.base_url))] == ["{}"] * 3
