"""A circuit breaker per node: whether to send it requests after recent failures.

::

    closed     5 failures in a row, half of the recent ones,    open
               a stream cut off after it began,
               or the node is unreachable                  -->
    open       after 1 s for the first ejection, then 2 s,
               at most 4 s                                 -->  half-open
    half-open  two probes in a row answered                -->  closed
               a probe failed                              -->  open, for twice as long

The names are Fowler's (https://martinfowler.com/bliki/CircuitBreaker.html); growing ejection times
are from Envoy's outlier detection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias, TypeVar

from aiosollol.core.routing.retry import Failure

FAILURES_TO_OPEN = 5
SUCCESSES_TO_CLOSE = 2
FIRST_EJECTION, LONGEST_EJECTION = 1.0, 4.0
"""Seconds. A recovered node waits at most LONGEST_EJECTION for a probe, and must have its full
share after 10 s (`core.routing.node_health.RETURN_SECONDS`). A probe is a caller's request, but
costs the caller little: a failed one is retried on another node, a late one is hedged
(`aiosollol.live.hedging`)."""
FORGIVE_SECONDS = 60.0
"""After this long closed, the next ejection is as short as the first."""

_RATE_TO_OPEN, _LEAST_REQUESTS = 0.5, 10.0
_WINDOW = 30.0  # seconds after which a request counts 1/e
_FORGOTTEN = 0.05  # failures; a smaller decayed count is reset to 0

Phase = Literal["closed", "open", "half_open"]


class Breaker(NamedTuple):
    """The breaker of one node. Immutable: `advance` returns the next state.

    in_row: consecutive failures.
    good, bad: decayed counts of requests in the last 30 s, since the first failure.
    faded_at: time of the last decay.
    opens_at: when it may be probed; None while closed.
    is_probing: whether a probe is in flight.
    passed: probes answered.
    ejections: how often it opened recently.
    closed_at: when it last closed.
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
        """Why it admits no request, for people to read; "" if it does."""
        if self.admits(now):
            return ""
        if self.is_probing:
            return "a probe is in flight after failures"
        return f"open after failures, for {(self.opens_at or now) - now:.1f} s more"


CLOSED = Breaker()


class CallSent(NamedTuple):
    """A request was sent as a probe: the breaker was not closed. Only needed for probes."""


class CallAnswered(NamedTuple):
    """A request was answered. `is_probe`: it was reported as `CallSent`."""

    is_probe: bool = False


class CallFailed(NamedTuple):
    """A request failed.

    is_probe: it was reported as `CallSent`.
    is_lost: it cannot be retried, because part of its answer has been delivered. One such failure
    opens the breaker: the next request could be lost too, while others only cost a retry.
    """

    failure: Failure
    is_probe: bool = False
    is_lost: bool = False


class CallAbandoned(NamedTuple):
    """A request was cancelled by the client: no evidence. `is_probe`: reported as `CallSent`."""

    is_probe: bool = False


class NodeReturned(NamedTuple):
    """An unreachable node is reachable again: it may be probed at once."""


Event: TypeAlias = CallSent | CallAnswered | CallFailed | CallAbandoned | NodeReturned


def advance(breaker: Breaker, event: Event, now: float) -> Breaker:
    """The breaker after `event`. Returns `breaker` itself if nothing changes.

    While it is not closed, results of requests sent before it opened are ignored. Raises ValueError
    if a second probe is sent.
    """
    match event:
        case CallAnswered(is_probe):
            return _answered(breaker, is_probe, now)
        case CallFailed(Failure.MODEL, is_probe):
            return _answered(breaker, is_probe, now)  # a correct answer from a live node
        case CallFailed(Failure.INPUT, is_probe) | CallAbandoned(is_probe):
            # Whether a refusal is right, other nodes must say (`core.blame`).
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
                raise ValueError("a probe is already in flight")
            return breaker._replace(is_probing=True)


def _answered(breaker: Breaker, is_probe: bool, now: float) -> Breaker:
    if breaker.opens_at is None:
        if not breaker.bad:
            return breaker  # fast path
        good, bad = _faded(breaker, now)
        if bad < _FORGOTTEN:
            return Breaker(ejections=breaker.ejections, closed_at=breaker.closed_at)
        return breaker._replace(in_row=0, good=good + 1.0, bad=bad, faded_at=now)
    if not is_probe:
        return breaker
    if breaker.passed + 1 >= SUCCESSES_TO_CLOSE:
        return Breaker(ejections=breaker.ejections, closed_at=now)
    # A last-resort probe may have been answered before `opens_at`: the node is back.
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
    """Seconds that a breaker stays open at its `ejections`-th ejection: 1, 2, 4, 4, ..."""
    return min(LONGEST_EJECTION, FIRST_EJECTION * 2.0 ** min(ejections - 1, 16))


def _faded(breaker: Breaker, now: float) -> tuple[float, float]:
    if not breaker.bad:
        return 0.0, 0.0
    faded = math.exp(min(0.0, breaker.faded_at - now) / _WINDOW)
    return breaker.good * faded, breaker.bad * faded


_Key = TypeVar("_Key")


def last_resort(breakers: Iterable[tuple[_Key, Breaker]], now: float) -> _Key | None:
    """The node to try when no breaker admits a request: the one that may be probed soonest.

    The request is a probe like any other (`CallSent`). None if every node is being probed, or if
    one admits requests.
    """
    best: _Key | None = None
    soonest = math.inf
    for key, breaker in breakers:
        if breaker.admits(now):
            return None
        if not breaker.is_probing and breaker.opens_at is not None and breaker.opens_at < soonest:
            best, soonest = key, breaker.opens_at
    return best
