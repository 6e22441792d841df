"""What an `EndpointAsker` does with many questions at a time, and what it tells its desk."""

import asyncio
import dataclasses
import threading
import time

import pytest

from pipeline.errors import BudgetSpent, EndpointFailed
from stages.asker import EndpointAsker
from stages.llm import Admission, Answer, Claim
from tests.helpers.asking import ask, config, question, script
from tests.helpers.llm_server import Reply, serve
from tests.helpers.open_desk import OpenDesk


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_two_hundred_questions_are_in_flight_at_once_and_no_more():
    gate = threading.Event()

    def answer(request):
        if request.number == 199:
            time.sleep(0.3)
            gate.set()
        return "hello" if gate.wait(30) else Reply(status=500)

    with serve(answer) as server:
        found = ask(server, *(question(str(k)) for k in range(230)), concurrency=200)
    assert server.most_in_flight == 200
    assert len(server.requests) == 230 and all(isinstance(each, Answer) for each in found)


def test_an_asker_serves_one_shard_after_the_other():
    with serve() as server, asyncio.Runner() as runner:
        asker = EndpointAsker(config(server.base_url, concurrency=2), OpenDesk())

        async def shard(number):
            return await asyncio.gather(*(asker.ask(question(f"{number} {k}")) for k in range(5)))

        assert [len(runner.run(shard(number))) for number in range(3)] == [5, 5, 5]
        runner.run(asker.client.close())


def test_equal_questions_at_a_time_are_asked_once():
    desk = OpenDesk()
    with serve(lambda request: Reply("hello", delay=0.1)) as server:
        found = ask(server, *[question()] * 20, question("other"), desk=desk)
    assert len(server.requests) == len(desk.settled) == 2
    assert sorted(answer.cached for answer in found) == [False] * 2 + [True] * 19


def test_equal_questions_fail_together():
    with serve(script(Reply("no", status=400))) as server:
        found = ask(server, question(), question(), structured="text")
    assert [type(error) for error in found] == [EndpointFailed] * 2
    assert len(server.requests) == 1


def test_the_twin_of_a_cancelled_question_is_asked():
    desk = OpenDesk()

    async def cancelled_then(server):
        asker = EndpointAsker(config(server.base_url), desk)
        first, *twins = [asyncio.create_task(asker.ask(question())) for _ in range(3)]
        while not server.requests:
            await asyncio.sleep(0.01)
        first.cancel()
        found = await asyncio.gather(first, *twins, return_exceptions=True)
        await asker.client.close()
        return found

    with serve(script(Reply(hang=True), Reply("hello", delay=0.1))) as server:
        first, *twins = asyncio.run(cancelled_then(server))
    assert isinstance(first, asyncio.CancelledError)
    assert sorted(twin.cached for twin in twins) == [False, True]
    assert [(answer and answer.text, requests) for _, answer, requests in desk.settled] == [(None, 1), ("hello", 1)]


class ClaimDesk(OpenDesk):
    """Gives these words on a claim in turn, and then lets it be asked."""

    def __init__(self, *claims, seconds=0.0):
        super().__init__()
        self.claims, self.asked, self.seconds = list(claims), [], seconds

    async def claim(self, key, anew=False):
        self.asked.append((key, anew))
        await asyncio.sleep(self.seconds)
        return self.claims.pop(0) if self.claims else Claim(None)


def test_an_answer_that_the_desk_has_is_not_asked_for():
    kept = Answer("kept", "stop", None, 1, 2)
    desk = ClaimDesk(Claim(None, 0.05), Claim(kept))
    with serve() as server:
        [answer] = ask(server, desk=desk)
    assert answer == dataclasses.replace(kept, cached=True)
    assert not server.requests and not desk.settled and len(desk.asked) == 2


def test_an_answer_wanted_anew_is_claimed_so():
    desk = ClaimDesk()

    async def anew(server):
        asker = EndpointAsker(config(server.base_url), desk)
        await asker.ask(question(), anew=True)
        await asker.client.close()

    with serve() as server:
        asyncio.run(anew(server))
    assert desk.asked == [(question().key, True)] and len(server.requests) == 1


def test_what_waits_for_another_worker_or_its_next_try_holds_no_place():
    def answer(request):
        return Reply("later", 429, {"Retry-After": "1.5"}) if request.number == 0 else "hello"

    desk = ClaimDesk(Claim(None, 1.5))
    with serve(answer) as server:
        ask(server, *(question(name) for name in ("claimed", "refused", "third")), desk=desk, concurrency=1)
    asked = [request.messages[-1]["content"] for request in server.requests]
    assert asked[:2] == ["refused", "third"] and sorted(asked[2:]) == ["claimed", "refused"]


class GateDesk(OpenDesk):
    """Admits after some words of `Admission`; `most` callers were inside at once, and `sizes` is what they sent."""

    def __init__(self, *admissions):
        super().__init__()
        self.admissions, self.inside, self.most, self.sizes = list(admissions), 0, 0, []

    async def admit(self, key, size):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.sizes.append(size)
        await asyncio.sleep(0.01)
        self.inside -= 1
        return self.admissions.pop(0) if self.admissions else Admission(True)


def test_a_request_is_sent_when_the_desk_says():
    desk = GateDesk(Admission(False, 0.2), Admission(True, 0.3))
    with serve() as server:
        started = time.monotonic()
        ask(server, desk=desk)
    assert 0.5 <= server.requests[0].arrived - started < 5


def test_no_more_than_the_concurrency_ask_for_leave():
    desk = GateDesk()
    with serve(lambda request: "hello") as server:
        ask(server, *(question(str(k)) for k in range(40)), desk=desk, concurrency=4)
    assert desk.most <= 4 and len(desk.sizes) == 40


def test_the_desk_is_told_the_bytes_of_text_and_the_patches_of_the_image():
    desk = GateDesk()
    with serve(lambda request: "hello") as server:
        ask(server, question("é"), question("é", image=b"12345678"), desk=desk, image_pixels=336 * 336)
    plain = len("Reply as JSON.") + 2
    assert desk.sizes == [plain, plain + 336 * 336 // 8]


def test_a_spent_budget_ends_the_question_before_it_is_sent():
    class Poor(OpenDesk):
        async def admit(self, key, size):
            raise BudgetSpent("spent")

    desk = Poor()
    with serve() as server:
        [error] = ask(server, desk=desk)
    assert isinstance(error, BudgetSpent)
    assert not server.requests and desk.settled == [(question().key, None, 0)]


@pytest.mark.parametrize("where", ["claim", "backoff", "admission"])
def test_a_cancelled_question_is_given_back(where):
    desk = {"claim": ClaimDesk(seconds=60), "backoff": OpenDesk(), "admission": GateDesk(Admission(True, 60))}[where]

    async def cancelled(server):
        asker = EndpointAsker(config(server.base_url), desk)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5 if where == "backoff" else 0.3):
                await asker.ask(question())
        await asker.client.close()

    with serve(script(Reply("later", status=429, headers={"Retry-After": "60"}))) as server:
        asyncio.run(cancelled(server))
    assert desk.settled == [(question().key, None, 1 if where == "backoff" else 0)]


def test_a_claim_of_another_worker_is_not_given_back():
    desk = ClaimDesk(Claim(None, 60))

    async def cancelled():
        asker = EndpointAsker(config(), desk)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asker.ask(question())

    asyncio.run(cancelled())
    assert desk.asked and not desk.settled
