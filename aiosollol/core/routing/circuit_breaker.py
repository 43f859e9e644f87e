"""A circuit breaker per node: whether to ask it at all, after what it did last.

::

    closed     5 failures in a row, half of the recent ones,    open
               a stream that was lost after its beginning,
               or it cannot be reached                     -->
    open       1 s after its first ejection, then 2 s, ...
               up to 4 s                                   -->  half-open
    half-open  two probes answered, one after the other    -->  closed
               a probe failed                              -->  open, for twice as long

The names are those of Fowler (https://martinfowler.com/bliki/CircuitBreaker.html); that ejections
grow longer each time is Envoy's outlier detection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from aiosollol.core.routing.retry import Failure

FAILURES_TO_OPEN = 5
SUCCESSES_TO_CLOSE = 2
FIRST_EJECTION, LONGEST_EJECTION = 1.0, 4.0
"""Seconds. Who is well again waits for a probe so long at most, and is to have its share after 10 s
(`core.routing.node_health.RETURN_SECONDS`). A probe is a caller's request, but costs the caller
next to nothing: what fails is tried elsewhere, and what is late is sent elsewhere beside it
(`aiosollol.live.hedging`)."""
FORGIVE_SECONDS = 60.0
"""Closed for so long, the next ejection is as short as the first."""

_RATE_TO_OPEN, _LEAST_REQUESTS = 0.5, 10.0
_WINDOW = 30.0  # seconds in which a request comes to count 1/e
_FORGOTTEN = 0.05  # failures; below that, nothing happened

Phase = Literal["closed", "open", "half_open"]


class Breaker(NamedTuple):
    """The breaker of one node. Never changes: `advance` returns the next one.

    in_row: failures one after another. good, bad: requests of the last half minute, faded, counted
    since the first failure; faded_at: until when. opens_at: when it may be probed, None while it is
    closed. is_probing: whether a probe is under way. passed: probes that were answered.
    ejections: how often it was opened lately. closed_at: when it was last closed.
    """

    in_row: int = 0
    good: float = 0.0
    bad: float = 0.0
    faded_at: float = 0.0
    opens_at: float | None = None
    is_probing: bool = False
    passed: int = 0
    ejections: int = 0
    closed_at: float = -math.inf

    def phase(self, now: float) -> Phase:
        if self.opens_at is None:
            return "closed"
        return "open" if now < self.opens_at else "half_open"

    def admits(self, now: float) -> bool:
        """Whether a request may be sent now. If it is not closed, this request is a probe."""
        return self.opens_at is None or (now >= self.opens_at and not self.is_probing)

    def describe(self, now: float) -> str:
        """In words, why it admits nobody; "" if it does."""
        if self.admits(now):
            return ""
        if self.is_probing:
            return "a probe is under way after failures"
        return f"open after failures, for {(self.opens_at or now) - now:.1f} s more"


CLOSED = Breaker()


class CallSent(NamedTuple):
    """A request was sent as a probe: the breaker was not closed. Others need not be told."""


class CallAnswered(NamedTuple):
    """A request was answered. `is_probe`: `Sent` was told of it."""

    is_probe: bool = False


class CallFailed(NamedTuple):
    """A request failed. `is_probe`: `Sent` was told of it. `is_lost`: nobody else can do it any
    more, as part of its answer has been delivered. One of those is enough: the next would be lost
    as well, where other failures only cost another attempt."""

    failure: Failure
    is_probe: bool = False
    is_lost: bool = False


class CallAbandoned(NamedTuple):
    """A request was cancelled by us, so it tells nothing. `is_probe`: `Sent` was told of it."""

    is_probe: bool = False


class NodeReturned(NamedTuple):
    """A node that could not be reached can be: it may be probed at once."""


Event: TypeAlias = CallSent | CallAnswered | CallFailed | CallAbandoned | NodeReturned


def advance(breaker: Breaker, event: Event, now: float) -> Breaker:
    """The breaker after `event`. Returns `breaker` itself if nothing changes.

    What requests report that were sent before it opened changes nothing while it is not closed:
    they are of the past. Raises ValueError if a second probe is sent.
    """
    match event:
        case CallAnswered(is_probe):
            return _answered(breaker, is_probe, now)
        case CallFailed(Failure.INPUT | Failure.MODEL, is_probe):
            return _answered(breaker, is_probe, now)  # it lives, and is right
        case CallAbandoned(is_probe):
            return breaker._replace(is_probing=False) if is_probe else breaker
        case CallFailed(failure, is_probe, is_lost):
            return _failed(breaker, is_lost or failure is Failure.NODE, is_probe, now)
        case NodeReturned():
            if breaker.opens_at is None or breaker.opens_at <= now:
                return breaker
            return breaker._replace(opens_at=now)
        case CallSent():
            if breaker.opens_at is None:
                return breaker
            if breaker.is_probing:
                raise ValueError("a probe is under way already")
            return breaker._replace(is_probing=True)


def _answered(breaker: Breaker, is_probe: bool, now: float) -> Breaker:
    if breaker.opens_at is None:
        if not breaker.bad:
            return breaker  # the usual case costs nothing
        good, bad = _faded(breaker, now)
        if bad < _FORGOTTEN:
            return Breaker(ejections=breaker.ejections, closed_at=breaker.closed_at)
        return breaker._replace(in_row=0, good=good + 1.0, bad=bad, faded_at=now)
    if not is_probe:
        return breaker
    if breaker.passed + 1 >= SUCCESSES_TO_CLOSE:
        return Breaker(ejections=breaker.ejections, closed_at=now)
    # One that was probed before its time, for want of another, has shown that it is back.
    opens_at = min(breaker.opens_at, now)
    return breaker._replace(is_probing=False, passed=breaker.passed + 1, opens_at=opens_at)


def _failed(breaker: Breaker, is_enough: bool, is_probe: bool, now: float) -> Breaker:
    if breaker.opens_at is not None:
        return _opened(breaker, now) if is_probe else breaker
    good, bad = _faded(breaker, now)
    bad += 1.0
    in_row = breaker.in_row + 1
    is_too_many = good + bad >= _LEAST_REQUESTS and bad >= _RATE_TO_OPEN * (good + bad)
    if is_enough or in_row >= FAILURES_TO_OPEN or is_too_many:
        return _opened(breaker, now)
    return breaker._replace(in_row=in_row, good=good, bad=bad, faded_at=now)


def _opened(breaker: Breaker, now: float) -> Breaker:
    is_forgiven = breaker.opens_at is None and now - breaker.closed_at > FORGIVE_SECONDS
    ejections = 1 if is_forgiven else breaker.ejections + 1
    return Breaker(
        opens_at=now + ejection_seconds(ejections),
        ejections=ejections,
        closed_at=breaker.closed_at,
    )


def ejection_seconds(ejections: int) -> float:
    """How long a breaker stays open that opens for the `ejections`-th time: 1, 2, 4, ... 60 s."""
    return min(LONGEST_EJECTION, FIRST_EJECTION * 2.0 ** min(ejections - 1, 16))


def _faded(breaker: Breaker, now: float) -> tuple[float, float]:
    if not breaker.bad:
        return 0.0, 0.0
    faded = math.exp(min(0.0, breaker.faded_at - now) / _WINDOW)
    return breaker.good * faded, breaker.bad * faded


_Key = TypeVar("_Key")


def last_resort(breakers: Iterable[tuple[_Key, Breaker]], now: float) -> _Key | None:
    """Which node to ask anyway when no breaker admits anybody: the one that opens soonest.

    The request is a probe like any other (`Sent`). None while each of them is being probed, or if
    one does admit.
    """
    best: _Key | None = None
    soonest = math.inf
    for key, breaker in breakers:
        if breaker.admits(now):
            return None
        if not breaker.is_probing and breaker.opens_at is not None and breaker.opens_at < soonest:
            best, soonest = key, breaker.opens_at
    return best
