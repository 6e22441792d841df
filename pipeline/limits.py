"""What holds a run's requests back: the rate limit, the circuit breaker of a dead endpoint, the budget.

Times are seconds of a clock that is given, so that nothing here sleeps.
"""

import math
import random
from collections.abc import Callable

from pipeline.errors import BudgetSpent, RunFailed

Clock = Callable[[], float]

BURST_SECONDS = 1.0
"""What is saved up while nothing is sent: a second's worth, so that no minute holds over 2% more than its limit."""
FAILURES = 10
"""After so many in a row that look like a dead endpoint it is taken for dead."""
PAUSES = (1.0, 30.0)
"""The first and the longest pause before a dead endpoint is tried again."""

_POLLS_PER_SECOND = 200
_LONGEST_WAIT = 5.0


class RequestLimit:
    """Gives every request its time, in the order asked: at most so many a minute, evenly spread (GCRA, the generic
    cell rate algorithm of ITU-T I.371, as a virtual schedule)."""

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self._clock = clock
        self._interval = 60 / per_minute if per_minute else 0.0
        # Less than a second's worth by one request: at few requests a minute one more would be a lot.
        self._burst = max(0.0, BURST_SECONDS - self._interval)
        self._due = -math.inf

    def take(self) -> float:
        """Seconds until the next request may be sent, which the caller does."""
        now = self._clock()
        due = max(self._due, now)
        self._due = due + self._interval
        return max(0.0, due - self._burst - now)


class TokenLimit:
    """Holds requests back while the tokens of those before fill the minute.

    How many tokens one takes is known when it is answered. Until then it counts with a share of the most that it could
    take, the share that the requests before it took.
    """

    def __init__(self, per_minute: float | None, clock: Clock) -> None:
        self._clock = clock
        self._seconds = 60 / per_minute if per_minute else 0.0
        self._due = -math.inf
        self._taken: dict[str, tuple[int, float]] = {}
        self._waiting: set[str] = set()
        # As if one small request had taken all it could.
        self._seen_taken = self._seen_most = 1000.0

    def wait(self, key: str) -> float:
        """Seconds after which to ask again, 0 if a request may be sent now."""
        ahead = self._due - BURST_SECONDS - self._clock()
        if ahead <= 0:
            self._waiting.discard(key)
            return 0.0
        self._waiting.add(key)
        # Spread, so that thousands that wait do not ask at once, and each has its chance.
        return ahead + random.random() * max(0.1, len(self._waiting) / _POLLS_PER_SECOND)

    def take(self, key: str, most: int) -> None:
        """Counts a request that is sent now and takes at most so many tokens."""
        share = most * self._seen_taken / self._seen_most
        self._taken[key] = most, share
        self._due = max(self._due, self._clock()) + share * self._seconds

    def settle(self, key: str, tokens: int | None) -> None:
        """Says how many tokens a request took, None if that is not known because it failed."""
        self._waiting.discard(key)
        if key not in self._taken:
            return
        most, share = self._taken.pop(key)
        self._due += ((tokens or 0) - share) * self._seconds
        if tokens is not None:
            self._seen_taken += tokens
            self._seen_most += most


class Breaker:
    """Stops asking an endpoint that looks dead; one request at a time tries whether it is back."""

    def __init__(self, outage_seconds: float, patience: float, clock: Clock) -> None:
        """Args:
        outage_seconds: for how long the endpoint may be dead.
        patience: after so many seconds, a request that tries the endpoint and was not heard of again is lost.
        """
        self._outage_seconds = outage_seconds
        self._patience = patience
        self._clock = clock
        self._close()

    def _close(self) -> None:
        self._failures = 0
        self._pause = 0.0
        self._since = self._last = self._next = 0.0
        self._trying: str | None = None

    def _open(self) -> None:
        now = self._clock()
        self._since = self._since if self.is_open else now
        self._last = now
        first, longest = PAUSES
        self._pause = min(longest, self._pause * 2) or first
        self._next = now + self._pause
        self._trying = None

    @property
    def is_open(self) -> bool:
        """Whether the endpoint is taken for dead."""
        return self._pause > 0

    def wait(self, key: str) -> float:
        """Seconds after which to ask again, 0 if this request may be sent, to try the endpoint or because it lives.

        Raises:
            RunFailed: the endpoint has been dead for too long.
        """
        if not self.is_open:
            return 0.0
        outage = self._last - self._since
        if outage >= self._outage_seconds:
            raise RunFailed(
                f"the endpoint of the language model has been down for {outage / 60:.0f} minutes; when it is back, "
                "the same command goes on ('outage_minutes' says how long it is waited for)"
            )
        now = self._clock()
        if now < self._next:
            return min(_LONGEST_WAIT, self._next - now) * random.uniform(1.0, 1.2)
        # Where it is tried already, `_next` is when that counts as lost.
        self._trying, self._next = key, now + self._patience
        return 0.0

    def failed(self, key: str, down: bool) -> bool:
        """Notes a failure; whether it counts against the question: not while the endpoint is taken for dead, except for
        the one that tries it, or questions that it always fails on would keep it dead for ever."""
        if not down:
            self._close()
            return True
        self._failures += 1
        tried = self._trying == key
        # Of what was sent before it looked dead, failures say nothing new.
        if tried or (not self.is_open and self._failures >= FAILURES):
            self._open()
        return tried or not self.is_open

    def succeeded(self) -> None:
        """Notes an answer."""
        self._close()

    def dropped(self, key: str) -> None:
        """Notes that a request was given up, or its sender lost: if it was to try the endpoint, another may."""
        if self._trying == key:
            self._trying, self._next = None, self._clock()


class Budget:
    """Sees to it that what is spent and what is in flight never exceed the budget, whatever the answers cost."""

    def __init__(self, budget: float | None) -> None:
        self._budget = budget
        self._held: dict[str, float] = {}

    def hold(self, key: str, most: float, spent: float) -> bool:
        """Puts aside the `most` that a request can cost; False if it has to wait for what is in flight.

        Raises:
            BudgetSpent: nothing is in flight, and it could cost more than is left.
        """
        if self._budget is None or key in self._held:
            return True
        if spent + sum(self._held.values()) + most <= self._budget:
            self._held[key] = most
            return True
        if self._held:
            return False
        raise BudgetSpent(
            f"{spent:.4f} of the budget of {self._budget:g} is spent, and the next question could cost {most:.4f}; "
            "raise 'budget', and the same command goes on"
        )

    def release(self, key: str) -> None:
        """Frees what was put aside for a request."""
        self._held.pop(key, None)
