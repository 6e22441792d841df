import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import BudgetSpent, RunFailed
from pipeline.limits import Breaker, Budget, RequestLimit, TokenLimit
from tests.helpers.rates import fullest_minute


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@given(
    st.sampled_from([20.0, 60.0, 90.0, 600.0, 3000.0]),
    st.lists(st.floats(0, 5), min_size=1, max_size=50),
    st.integers(1, 40),
)
@settings(max_examples=60)
def test_no_minute_holds_more_than_five_percent_over_the_requests(per_minute, pauses, crowd):
    clock = Clock()
    limit = RequestLimit(per_minute, clock)
    sent = []
    while len(sent) < 3 * per_minute:
        for pause in pauses:
            clock.now += pause / 10
            sent += [(clock.now + limit.take(), 1) for _ in range(crowd)]
    assert fullest_minute(sent) <= per_minute * 1.05


def test_requests_get_their_times_in_the_order_asked_and_use_the_limit(clock):
    limit = RequestLimit(120, clock)
    waits = [limit.take() for _ in range(241)]
    assert waits == sorted(waits) and waits[0] == 0
    assert waits[-1] == pytest.approx(120, abs=1)


def test_without_limits_nothing_waits(clock):
    requests, tokens = RequestLimit(None, clock), TokenLimit(None, clock)
    for _ in range(1000):
        assert requests.take() == 0 and tokens.wait("k") == 0
        tokens.take("k", 10**6)


def play_tokens(per_minute, callers, most, taken, minutes, seconds=3.0):
    """(time, tokens) of what so many callers send, each waiting for its answer."""
    clock = Clock()
    limit = TokenLimit(per_minute, clock)
    rng = random.Random(1)
    events = [(clock.now, number, "ask", 0) for number in range(callers)]
    sent = []
    while events:
        clock.now, number, what, tokens = heapq.heappop(events)
        if clock.now > 1000 + 60 * minutes:
            return sent
        key = str(number)
        if what == "answered":
            limit.settle(key, tokens)
            heapq.heappush(events, (clock.now, number, "ask", 0))
        elif wait := limit.wait(key):
            heapq.heappush(events, (clock.now + wait, number, "ask", 0))
        else:
            limit.take(key, most)
            tokens = taken(rng)
            sent.append((clock.now, tokens))
            heapq.heappush(events, (clock.now + rng.uniform(0.5, seconds), number, "answered", tokens))
    return sent


@pytest.mark.parametrize("callers", [4, 128])
def test_no_minute_holds_more_than_five_percent_over_the_tokens_and_the_limit_is_used(callers):
    sent = play_tokens(100_000, callers, 2500, lambda rng: rng.randint(300, 700), minutes=5)
    assert fullest_minute(sent) <= 105_000
    if callers > 4:
        last = sum(tokens for time, tokens in sent if time >= 1000 + 240)
        assert last >= 93_000


def test_a_failed_request_gives_its_tokens_back(clock):
    limit = TokenLimit(600, clock)
    limit.take("a", 6000)
    assert limit.wait("b") > 500
    limit.settle("a", None)
    assert limit.wait("b") == 0


def test_a_request_larger_than_a_minute_is_sent_and_paid_for_afterwards(clock):
    limit = TokenLimit(600, clock)
    assert limit.wait("a") == 0
    limit.take("a", 1200)
    limit.settle("a", 1200)
    assert 119 <= limit.wait("b") <= 120


@pytest.fixture
def breaker(clock):
    return Breaker(outage_seconds=600, patience=300, clock=clock)


def open_up(breaker):
    return [breaker.failed(f"q{number}", down=True) for number in range(10)]


def test_ten_failures_in_a_row_open_the_breaker_and_count_no_more(breaker):
    assert open_up(breaker) == [True] * 9 + [False]
    assert breaker.wait("a") > 0


@pytest.mark.parametrize("end", ["answer", "busy"])
def test_an_answer_or_a_busy_server_in_between_keeps_it_closed(breaker, end):
    for number in range(50):
        if number % 9 == 0:
            breaker.succeeded() if end == "answer" else breaker.failed("q", down=False)
        assert breaker.failed("q", down=True)
    assert breaker.wait("a") == 0


def test_failures_an_hour_apart_do_not_end_the_run(breaker, clock):
    for _ in range(10):
        breaker.failed("q", down=True)
        clock.now += 3600
    assert breaker.wait("a") == 0


def test_while_it_is_open_one_request_at_a_time_tries_after_growing_pauses(breaker, clock):
    open_up(breaker)
    pauses = []
    for _ in range(7):
        start = clock.now
        while breaker.wait("probe"):
            clock.now += 0.5
        pauses.append(clock.now - start)
        assert all(0 < breaker.wait("other") < 7 for _ in range(5))
        # One that was sent before it opened changes nothing.
        assert not breaker.failed("late", down=True)
        # Else a question that the endpoint always fails on would be tried for ever.
        assert breaker.failed("probe", down=True)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    clock.now += 31
    assert breaker.wait("probe") == 0
    breaker.succeeded()
    assert breaker.wait("other") == 0


@pytest.mark.parametrize("lost", ["dropped", "silent"])
def test_another_tries_when_the_one_that_did_is_lost(breaker, clock, lost):
    open_up(breaker)
    clock.now += 1
    assert breaker.wait("probe") == 0
    if lost == "dropped":
        breaker.dropped("probe")
    else:
        assert breaker.wait("other") > 0
        clock.now += 300
    assert breaker.wait("other") == 0


def test_an_endpoint_that_is_down_for_too_long_ends_the_run(breaker, clock):
    open_up(breaker)
    start = clock.now
    with pytest.raises(RunFailed, match=r"down for 10 minutes.*outage_minutes"):
        while clock.now < start + 3600:
            if breaker.wait("probe") == 0:
                breaker.failed("probe", down=True)
            clock.now += 0.5
    assert 600 <= clock.now - start <= 660


def test_a_machine_that_slept_tries_before_it_gives_up(breaker, clock):
    open_up(breaker)
    clock.now += 10 * 3600
    assert breaker.wait("probe") == 0


def test_without_patience_the_first_outage_ends_the_run(clock):
    breaker = Breaker(outage_seconds=0, patience=300, clock=clock)
    open_up(breaker)
    with pytest.raises(RunFailed):
        breaker.wait("a")


def test_the_budget_waits_for_what_is_in_flight_and_then_stops():
    budget = Budget(1.0)
    assert budget.hold("a", 0.4, spent=0.0) and budget.hold("b", 0.4, spent=0.0)
    assert budget.hold("a", 0.4, spent=0.0)
    assert not budget.hold("c", 0.4, spent=0.0)
    budget.release("a")
    assert budget.hold("c", 0.4, spent=0.1)
    budget.release("b")
    budget.release("c")
    with pytest.raises(BudgetSpent, match=r"0.7000 of the budget of 1 .* 0.4000; raise 'budget'"):
        budget.hold("d", 0.4, spent=0.7)


def test_no_budget_holds_nothing_back():
    assert Budget(None).hold("a", 1e9, spent=1e9)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 0.5), st.floats(0, 1)), max_size=200))
def test_what_is_spent_never_exceeds_the_budget(steps):
    budget, spent, held = Budget(2.0), 0.0, {}
    for number, most, share in steps:
        if number in held:
            spent += held.pop(number) * share
            budget.release(str(number))
            continue
        try:
            if budget.hold(str(number), most, spent):
                held[number] = most
        except BudgetSpent:
            assert not held
    assert spent + sum(held.values()) <= 2.0 + 1e-9
