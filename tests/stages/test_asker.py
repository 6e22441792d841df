import asyncio
import base64
import dataclasses
import json
import threading
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BudgetSpent, EndpointFailed, InputError
from stages.asker import EndpointAsker, answer_of, request_body, retry_after
from stages.llm import Admission, Answer, Claim, LlmConfig, Question
from tests.helpers.llm_server import FAULTS, Reply, Request, faulty, serve
from tests.helpers.open_desk import OpenDesk

KEY = "sk-very-secret-0123"
SCHEMA = {"type": "object", "properties": {"phrases": {"type": "array"}}}
AT_ONCE = {"Retry-After": "0"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def config(base_url="http://127.0.0.1:1/v1", **changed):
    return LlmConfig.model_validate({"base_url": base_url, "model": "tiny", "timeout": 30, "retries": 2} | changed)


def question(text="a red cup", prompt="simplify", **changed):
    messages = ({"role": "system", "content": "Reply as JSON."}, {"role": "user", "content": text})
    return Question(prompt, "hash", messages, SCHEMA, {"model": "tiny"}, **changed)


def ask(server, *questions, desk=None, **changed):
    """What became of each question, asked all at once through one asker: its answer, or its error."""
    desk = desk or OpenDesk()

    async def all_of_them():
        asker = EndpointAsker(config(server.base_url, **changed), desk)
        asked = (asker.ask(each) for each in questions or [question()])
        found = await asyncio.gather(*asked, return_exceptions=True)
        await asker.client.close()
        return found

    return asyncio.run(all_of_them())


def in_turn(server, *questions, **changed):
    """As `ask`, one after the other."""

    async def each():
        asker, found = EndpointAsker(config(server.base_url, **changed), OpenDesk()), []
        for one in questions:
            found += await asyncio.gather(asker.ask(one), return_exceptions=True)
        await asker.client.close()
        return found

    return asyncio.run(each())


def script(*replies):
    """Gives these replies in turn, the last one for ever."""
    return lambda request: replies[min(request.number, len(replies) - 1)]


def modes(server):
    return [request.body.get("response_format", {}).get("type", "text") for request in server.requests]


def test_an_answer_has_the_models_words_and_its_tokens_and_ends_the_claim():
    desk = OpenDesk()
    reply = Reply("hello", finish_reason="length", refusal="no", input_tokens=11, output_tokens=7)
    with serve(lambda request: reply) as server:
        [answer] = ask(server, desk=desk)
    assert answer == Answer("hello", "length", "no", 11, 7, cached=False)
    assert desk.settled == [(question().key, answer, 1)]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_request_has_the_messages_the_parameters_and_the_schema():
    with serve() as server:
        ask(server, temperature=0.5, max_tokens=99, extra={"seed": 3})
    messages = [{"role": "system", "content": "Reply as JSON."}, {"role": "user", "content": "a red cup"}]
    schema = {"name": "simplify", "schema": SCHEMA, "strict": True}
    assert server.requests[0].body == {
        "model": "tiny",
        "messages": messages,
        "temperature": 0.5,
        "max_tokens": 99,
        "seed": 3,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


def test_extra_takes_fields_out_and_renames_the_token_limit():
    body = request_body(config(extra={"temperature": None, "max_completion_tokens": 40}), question(), "text")
    assert set(body) == {"model", "messages", "max_completion_tokens"}


def test_an_image_goes_into_the_last_message_as_it_is():
    seen = question(image=b"\xff\xd8jpeg").repaired("bad", "say it again")
    body = request_body(config(), seen, "json_object")
    *before, last = body["messages"]
    assert all(isinstance(message["content"], str) for message in before) and len(before) == 3
    image, text = last["content"]
    assert base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) == b"\xff\xd8jpeg"
    assert text == {"type": "text", "text": "say it again"}
    assert body["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_a_busy_or_broken_server_is_asked_again(status):
    desk = OpenDesk()
    with serve(script(*[Reply("later", status=status, headers=AT_ONCE)] * 2, "hello")) as server:
        [answer] = ask(server, desk=desk)
    assert answer.text == "hello"
    assert desk.failures == [status >= 500] * 2
    assert desk.settled == [(question().key, answer, 3)]


def test_a_question_without_an_answer_after_its_retries_has_failed_and_is_given_back():
    desk = OpenDesk()
    with serve(script(Reply("full", status=503, headers=AT_ONCE))) as server:
        [error] = ask(server, desk=desk, retries=3)
    assert isinstance(error, EndpointFailed)
    assert server.base_url in str(error) and "503" in str(error) and "4 requests" in str(error)
    assert desk.settled == [(question().key, None, 4)]


def test_what_fails_while_the_endpoint_is_down_does_not_count():
    class DownAtFirst(OpenDesk):
        async def failed(self, key, down):
            await super().failed(key, down)
            return len(self.failures) > 4

    with serve(script(*[Reply("down", status=502, headers=AT_ONCE)] * 5, "hello")) as server:
        [answer] = ask(server, desk=DownAtFirst(), retries=1)
    assert answer.text == "hello"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_is_left_alone_for_as_long_as_it_says(form):
    due = []

    def answer(request):
        if request.number:
            return "hello"
        due.append(time.time() + 1)
        if form == "date":
            # An HTTP date has whole seconds.
            due[0] = int(due[0]) + 1
        headers = {"Retry-After": "1" if form == "seconds" else formatdate(due[0], usegmt=True)}
        return Reply("later", status=429, headers=headers)

    with serve(answer) as server:
        ask(server)
        late = time.time() - time.monotonic() + server.requests[1].arrived - due[0]
    assert 0 <= late < 0.5


def test_without_a_word_of_the_server_the_waits_grow():
    with serve(script(Reply("later", status=429))) as server:
        ask(server, retries=2)
    first, second, third = (request.arrived for request in server.requests)
    assert 0.25 <= second - first < 0.8 and 0.5 <= third - second < 1.3


@given(st.one_of(st.none(), st.text(), st.floats().map(str), st.integers().map(str), st.datetimes().map(str)))
def test_no_header_makes_a_wait_that_cannot_be_waited(value):
    seconds = retry_after(value)
    assert seconds is None or 0 <= seconds < 1e12


def test_a_time_that_is_past_is_no_wait_and_an_unreadable_one_is_not_a_time():
    assert retry_after(formatdate(0, usegmt=True)) == 0
    assert retry_after("1.5") == 1.5
    assert [retry_after(value) for value in (None, "soon", "-1", "nan", "inf")] == [None] * 5


def test_no_connection_is_a_failure_that_looks_down():
    desk = OpenDesk()
    with serve() as gone:
        address = gone
    [error] = ask(address, desk=desk, retries=1)
    assert isinstance(error, EndpointFailed) and "Connection" in str(error)
    assert desk.failures == [True, True]


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply("slow", pause=0.02)], ids=["silent", "trickling"])
def test_a_server_that_never_comes_to_an_end_is_left(reply):
    desk = OpenDesk()
    with serve(lambda request: reply) as server:
        started = time.monotonic()
        [error] = ask(server, desk=desk, timeout=0.3, retries=0)
        assert time.monotonic() - started < 1.5
    assert isinstance(error, EndpointFailed) and desk.failures == [True]


PLAIN = Reply("hello").completion(Request({"messages": []}))
HTML = {"Content-Type": "text/html"}
NO_COMPLETIONS = {
    "page": Reply(raw="<html>Welcome</html>", headers=HTML),
    "page said to be JSON": Reply(raw="<html>Welcome</html>"),
    "error with status 200": Reply(raw='{"error": {"message": "overloaded"}}'),
    "cut": Reply(raw='{"choices": [{'),
    "cut short of its length": Reply(raw="{", headers={"Content-Length": "100", "Connection": "close"}),
    "nothing": Reply(raw=""),
    "null": Reply(raw="null"),
    "list": Reply(raw="[1]"),
    "no choices": Reply(raw=json.dumps(PLAIN | {"choices": []})),
    "choice of another kind": Reply(raw=json.dumps(PLAIN | {"choices": ["hello"]})),
    "no gzip": Reply(raw="{}", headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("reply", NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_what_is_no_completion_is_never_an_answer(reply):
    with serve(script(reply)) as server:
        [error] = ask(server, retries=0)
    assert isinstance(error, EndpointFailed) and server.base_url in str(error)


def test_after_what_is_no_completion_the_question_is_asked_again():
    desk = OpenDesk()
    with serve(script(NO_COMPLETIONS["cut"], "hello")) as server:
        assert [answer.text for answer in ask(server, desk=desk)] == ["hello"]
    assert desk.failures == [False]


def test_a_completion_is_read_whatever_its_content_type_and_without_a_count_of_tokens():
    bare = {"choices": [{"message": {"content": None}}]}
    with serve(script(Reply(raw=json.dumps(bare), headers={"Content-Type": "text/plain"}))) as server:
        assert ask(server) == [Answer("", "", None, 0, 0)]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)))
def test_any_json_in_place_of_a_completion_or_a_part_of_it_is_told_from_an_answer(value):
    assert answer_of(value) is None
    assert answer_of(PLAIN | {"choices": value}) is None
    for part in ("message", "finish_reason"):
        found = answer_of(PLAIN | {"choices": [PLAIN["choices"][0] | {part: value}]})
        assert found is None or isinstance(found, Answer)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_the_run_at_once(status):
    desk = OpenDesk()
    with serve(script(Reply(f"wrong key {KEY}", status=status))) as server:
        [error] = ask(server, desk=desk)
    assert isinstance(error, InputError) and str(status) in str(error) and server.base_url in str(error)
    assert len(server.requests) == 1
    assert desk.settled == [(question().key, None, 1)]


@pytest.mark.parametrize("reply", [Reply("pay", 402), Reply("pay", 429, error_code="insufficient_quota")])
def test_an_account_without_credit_ends_the_run_at_once(reply):
    with serve(script(reply)) as server:
        [error] = ask(server)
    assert isinstance(error, InputError) and "no credit" in str(error) and server.base_url in str(error)
    assert len(server.requests) == 1


def test_a_parameter_that_the_model_does_not_take_ends_the_run_and_says_what_to_set():
    body = {"error": {"message": "no", "code": "unsupported_value", "param": "temperature"}}
    with serve(script(Reply(raw=json.dumps(body), status=400))) as server:
        [error] = ask(server)
    assert isinstance(error, InputError) and "temperature: null" in str(error)


def test_a_question_that_a_content_filter_stops_is_answered_by_it():
    desk = OpenDesk()
    with serve(script(Reply("policy", status=400, error_code="content_filter"))) as server:
        [answer] = ask(server, desk=desk)
    assert (answer.finish_reason, answer.text) == ("content_filter", "")
    assert desk.settled == [(question().key, answer, 1)]


def without(*refused):
    """A server that refuses these modes."""

    def answer(request):
        mode = request.body.get("response_format", {}).get("type", "text")
        return Reply(f"what is {mode}?", status=400) if mode in refused else "hello"

    return answer


def test_the_strictest_mode_that_the_server_takes_is_found_and_remembered():
    with serve(without("json_schema", "json_object")) as server:
        found = in_turn(server, question("a"), question("b"), question("a", prompt="complicate"))
    assert [answer.text for answer in found] == ["hello"] * 3
    tried = ["json_schema", "json_object", "text"]
    assert modes(server) == [*tried, "text", *tried]


def test_a_step_down_is_none_of_the_retries():
    desk = OpenDesk()
    with serve(without("json_schema")) as server:
        [answer] = ask(server, retries=0, desk=desk)
    assert answer.text == "hello"
    assert desk.failures == [False]


def test_one_bad_question_does_not_cost_the_others_their_schema():
    def answer(request):
        return Reply("too long", status=400) if "long" in request.text else "hello"

    with serve(answer) as server:
        found = in_turn(server, question("long"), question("a"), question("longer"), question("b"))
    assert [isinstance(each, EndpointFailed) for each in found] == [True, False, True, False]
    assert modes(server) == ["json_schema", "json_object", "text"] + ["json_schema"] * 3


@pytest.mark.parametrize("status", [400, 422])
def test_a_bad_request_in_the_mode_of_the_profile_fails_with_the_servers_reason(status):
    with serve(script(Reply(f"no\nschema for {KEY}", status=status))) as server:
        [error] = ask(server, structured="json_schema")
    assert isinstance(error, EndpointFailed) and "schema for ***" in str(error) and "\n" not in str(error)
    assert KEY not in str(error) and error.__suppress_context__
    assert len(server.requests) == 1


def test_no_failure_shows_the_key():
    for status in (400, 401, 402, 418, 429, 500):
        with serve(lambda request, status=status: Reply(str(request.headers), status, headers=AT_ONCE)) as server:
            [error] = ask(server, retries=0)
        assert server.requests[0].headers["authorization"].endswith(KEY)
        assert isinstance(error, Exception) and KEY not in str(error) and error.__suppress_context__


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


def test_through_every_fault_of_a_server_each_question_gets_its_answer():
    rates = {"429": 0.3, "500": 0.1, "garbage": 0.05, "hang": 0.05}
    with serve(faulty(lambda request: "hello", rates, seed=4)) as server:
        found = ask(server, *(question(str(k)) for k in range(15)), timeout=0.3, retries=20)
    assert {answer.text for answer in found} <= {"hello", FAULTS["garbage"].text}
    assert {request.status for request in server.requests} == {200, 429, 500, None}


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
        return Reply("later", 429, {"Retry-After": "0.6"}) if request.number == 0 else "hello"

    desk = ClaimDesk(Claim(None, 0.6))
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
    assert 0.5 <= server.requests[0].arrived - started < 1


def test_no_more_than_the_concurrency_ask_for_leave():
    desk = GateDesk()
    with serve(lambda request: "hello") as server:
        ask(server, *(question(str(k)) for k in range(40)), desk=desk, concurrency=4)
    assert desk.most <= 4 and len(desk.sizes) == 40


def test_the_desk_is_told_the_bytes_of_text_with_the_image_as_text():
    desk = GateDesk()
    with serve(lambda request: "hello") as server:
        ask(server, question("é"), question("é", image=b"12345678"), desk=desk)
    plain = len("Reply as JSON.") + 2
    assert desk.sizes == [plain, plain + len(base64.b64encode(b"12345678"))]


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
    desk = {"claim": ClaimDesk(seconds=0.2), "backoff": OpenDesk(), "admission": GateDesk(Admission(True, 60))}[where]

    async def cancelled(server):
        asker = EndpointAsker(config(server.base_url), desk)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1 if where == "claim" else 0.3):
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


def test_a_question_that_is_no_unicode_text_costs_itself_alone():
    with serve(lambda request: "hello") as server:
        broken, fine = ask(server, question("half of \ud83d"), question())
    assert isinstance(broken, EndpointFailed) and fine.text == "hello"
