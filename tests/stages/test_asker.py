import asyncio
import base64
import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import EndpointFailed, InputError
from stages.asker import EndpointAsker, answer_of, request_body, retry_after
from stages.llm import Answer
from tests.helpers.asking import SCHEMA, ask, config, question, script
from tests.helpers.llm_server import FAULTS, Reply, Request, faulty, serve
from tests.helpers.open_desk import OpenDesk

KEY = "sk-very-secret-0123"
AT_ONCE = {"Retry-After": "0"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def in_turn(server, *questions, **changed):
    """As `ask`, one after the other."""

    async def each():
        asker, found = EndpointAsker(config(server.base_url, **changed), OpenDesk()), []
        for one in questions:
            found += await asyncio.gather(asker.ask(one), return_exceptions=True)
        await asker.client.close()
        return found

    return asyncio.run(each())


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
    assert 0 <= late < 3


def test_without_a_word_of_the_server_the_waits_grow():
    with serve(script(Reply("later", status=429))) as server:
        ask(server, retries=2)
    first, second, third = (request.arrived for request in server.requests)
    assert 0.25 <= second - first < 5 and 0.5 <= third - second < 5


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
        assert time.monotonic() - started < 10
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


def test_questions_that_wait_for_a_place_learn_of_a_step_down():
    with serve(without("json_schema")) as server:
        found = ask(server, *(question(str(k)) for k in range(5)), concurrency=1)
    assert [answer.text for answer in found] == ["hello"] * 5
    assert sorted(modes(server)) == ["json_object"] * 5 + ["json_schema"]


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


def test_through_every_fault_of_a_server_each_question_gets_its_answer():
    rates = {"429": 0.3, "500": 0.1, "garbage": 0.05, "hang": 0.05}
    with serve(faulty(lambda request: "hello", rates, seed=4)) as server:
        found = ask(server, *(question(str(k)) for k in range(15)), timeout=0.3, retries=20)
    assert {answer.text for answer in found} <= {"hello", FAULTS["garbage"].text}
    assert {request.status for request in server.requests} == {200, 429, 500, None}


def test_a_question_that_is_no_unicode_text_costs_itself_alone():
    with serve(lambda request: "hello") as server:
        broken, fine = ask(server, question("half of \ud83d"), question())
    assert isinstance(broken, EndpointFailed) and fine.text == "hello"
