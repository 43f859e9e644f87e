"""How many requests a node should have at once: as many as make it answer more, and few beyond.

Latency tells. With `n` requests on a node that works on `C` at once, each takes `n / C` times as
long as alone, as soon as n is above C; what is above C only waits. So

    waiting = n x (1 - seconds alone / seconds now)

which is the estimate of TCP Vegas (Brakmo, O'Malley, Peterson 1994), used for servers by Netflix's
concurrency-limits (Vegas, Gradient2) and Envoy's adaptive concurrency. The limit grows while less
waits than about half of its square root, and shrinks when more waits than that root: then one
waits at a node that does one thing at a time (the limit is 2), two to four where it does 16.

A wait below `GOOD_DELAY` does not count. Nobody notices it; and where a node answers sooner than
that, most of it is our own, since a busy event loop comes to an answer late. With few requests at
once such a loop would have less to do each time it looks, and each of them would cost more.

Seconds are per unit of work, so that a long text or a long chat is not taken for congestion. Work
is what the caller says, in any unit: prompt tokens of an embedding, tokens of an answer. Only
requests of one kind can be compared, so keep a state for each (node, model, kind).
"""

from __future__ import annotations

import math
from typing import NamedTuple

START = 2.0
GROW_BELOW, SHRINK_ABOVE = 0.6, 1.0
"""Times the square root of the limit."""
GOOD_DELAY = 0.005
"""Seconds: what CoDel takes for the delay of a queue that does no harm (RFC 8289, TARGET)."""
_LEAST, _MOST = 1.0, 512.0
_BACK_OFF = 0.7
_ABSURD = 1e12  # seconds for a unit of work
_FAST, _SLOW = 0.3, 0.1
_LOOK_EVERY = 60
"""Rounds (as many answers as the limit) between two looks at what a request takes alone."""


class LatencySample(NamedTuple):
    """One request that ended. in_flight: how many there were when it was sent, itself included.

    is_overload: it failed because there was too much to do: a timeout, or 503. Leave out others
    that failed, cold loads, and what was cancelled.
    """

    seconds: float
    work: float
    in_flight: int
    is_overload: bool = False


class Concurrency(NamedTuple):
    """What is known of a node's concurrency. Never changes: `adapt` returns the next one.

    limit: how many requests, with its fraction. alone: seconds per unit of work when nobody is in
    the way; busy: when the node is at its limit; both 0 before the first answer. seen: answers at
    the limit. until_look: answers until the limit is halved for a moment, to see `alone` again;
    looking: answers for which it still is. settling: answers until an overload counts again.
    most: the limit's own limit.
    """

    limit: float = START
    alone: float = 0.0
    busy: float = 0.0
    seen: int = 0
    until_look: float = 5 * START
    looking: int = 0
    settling: int = 0
    most: float = _MOST

    @property
    def allowed(self) -> int:
        """How many requests may be under way."""
        limit = self.limit / 2 if self.looking else self.limit
        return max(1, int(limit + 1e-9))


def start(max_concurrency: int | None = None) -> Concurrency:
    """The state of a node that was asked nothing yet: 2 requests, or what its user allows."""
    most = _MOST if max_concurrency is None else float(max_concurrency)
    return Concurrency(limit=min(START, most), most=most)


def adapt(state: Concurrency, sample: LatencySample) -> Concurrency:
    """The state after `sample`."""
    seconds, work, in_flight, is_overload = sample
    limit, alone, busy, seen, until_look, looking, settling, most = state
    settling = max(0, settling - 1)
    if is_overload:
        # Once for all that were under way together: they fail together.
        if not settling:
            settling, limit = int(limit) + 1, max(_LEAST, limit * _BACK_OFF)
        return Concurrency(limit, alone, busy, seen, until_look, looking, settling, most)
    unit = seconds / work if work > 0.0 else 0.0
    if not 0.0 < unit < _ABSURD:
        return state
    if looking:
        looking -= 1
        if in_flight <= state.allowed:
            alone += min(_FAST, 2.0 / limit) * (unit - alone)
        return Concurrency(limit, alone, busy, seen, until_look, looking, settling, most)
    until_look -= 1.0
    if until_look <= 0.0 and limit >= 2.0:
        until_look = _LOOK_EVERY * limit
        # Those still under way, and a round at half the limit.
        looking = int(limit) + max(3, int(limit / 2))
    if not alone:
        alone, busy = unit, unit * in_flight
    else:
        if in_flight <= 1:
            alone += _SLOW * (unit - alone)
        if in_flight >= int(limit + 1e-9):  # otherwise it is not the limit that limits
            busy += max(_FAST / limit, 1.0 / (seen + 1)) * (unit - busy)
            seen += 1
            ratio = alone / busy if busy > 0.0 else 1.0
            delay = work * (busy - alone)
            limit = min(max(_next(limit, in_flight, ratio, delay), _LEAST), most)
    return Concurrency(limit, alone, busy, seen, until_look, looking, settling, most)


def _next(limit: float, in_flight: int, ratio: float, delay: float) -> float:
    """The limit after an answer.

    ratio: the seconds alone over those when busy. delay: the seconds between them.
    """
    if delay < GOOD_DELAY:
        return limit + 1.0 / limit
    waiting = in_flight * (1.0 - ratio)
    root = math.sqrt(int(limit + 1e-9))
    if waiting > SHRINK_ABOVE * root:
        # In one round, half of what is too much.
        return limit - (waiting - SHRINK_ABOVE * root) / 2 / limit
    if waiting < GROW_BELOW * root:
        return limit + 1.0 / limit
    return limit
