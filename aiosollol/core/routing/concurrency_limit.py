"""Adaptive concurrency limit of a node: enough requests in flight for full throughput, few beyond.

The limit follows latency. With `n` requests on a node that works on `C` at once, each takes
`n / C` times as long as alone if n > C; the excess only waits. So

    waiting = n x (1 - seconds alone / seconds now)

which is the estimate of TCP Vegas (Brakmo, O'Malley, Peterson 1994), used for servers by Netflix's
concurrency-limits (Vegas, Gradient2) and Envoy's adaptive concurrency. The limit grows while fewer
wait than about half of its square root, and shrinks when more wait than that root: one waits at a
node that runs one request at a time (the limit is 2), two to four at a node that runs 16.

A delay below `GOOD_DELAY` does not count. It is not noticeable, and if a node answers faster than
that, most of it is the client's own: a busy event loop handles answers late. With fewer requests at
once such a loop would do less per iteration, at a higher cost per request.

Seconds are per unit of work, so that a long text is not mistaken for congestion. Only requests of
one kind can be compared, so keep a state for each (node, model, kind).

A chat takes seconds to minutes, depending on its answer, so its latency says little, and late. What
it waited before it began says more: a server begins requests in order of arrival, at once if a slot
is free. So `after_begin` doubles the limit while all begin at once, as TCP does in slow start (RFC
5681). When one had to wait, it sets the limit to those that were being answered, plus one, which
takes the next slot without a gap.
"""

from __future__ import annotations

import math
from typing import NamedTuple

START = 2.0
GROW_BELOW, SHRINK_ABOVE = 0.6, 1.0
"""Multiples of the square root of the limit."""
GOOD_DELAY = 0.005
"""Seconds: the harmless queue delay of CoDel (RFC 8289, TARGET)."""
_LEAST, _MOST = 1.0, 512.0
_BACK_OFF = 0.7
_ABSURD = 1e12  # seconds per unit of work
_FAST, _SLOW = 0.3, 0.1
_LONG_SECONDS = 1.0
"""An answer that takes longer is not worth a look: requests held back would wait for several."""
_NO_WAIT, _WAIT, _LONG_WAIT = 0.05, 0.25, 0.5
"""Of the seconds that a chat takes: a wait that may be noise, and one that is not; and seconds that
are too long for any."""
_LOOK_EVERY = 60
"""Rounds (as many answers as the limit) between two measurements of the latency alone."""


class LatencySample(NamedTuple):
    """One finished request.

    seconds: its latency.
    work: its amount of work, in any unit.
    in_flight: requests in flight when it was sent, including itself.
    is_overload: it failed from overload: a timeout, or 503. Leave out other failures, cold loads
    and cancelled requests.
    """

    seconds: float
    work: float
    in_flight: int
    is_overload: bool = False


class Begin(NamedTuple):
    """The begin of one chat or generate.

    waited: seconds that it waited for a slot of the node.
    seconds: those that it takes alone.
    active: requests that the node was answering then, including itself; if it had to wait, those
    just before, without it.
    in_flight: requests in flight then, or when it was sent, if nothing showed when it began.
    may_grow: whether more at once would be answered faster than one after another.
    is_exact: whether `active` is known rather than estimated, as for a whole answer.
    """

    waited: float
    seconds: float
    active: int
    in_flight: int
    may_grow: bool = True
    is_exact: bool = True


class Concurrency(NamedTuple):
    """The limiter state of a node. Immutable: `adapt` and `after_begin` return the next one.

    limit: the limit, with its fraction.
    alone: seconds per unit of work without contention; 0 before the first answer.
    busy: seconds per unit of work at the limit; 0 before the first answer.
    seen: answers at the limit.
    until_look: answers until the limit is halved briefly, to measure `alone` again.
    looking: answers for which it remains halved.
    settling: answers until an overload counts again.
    most: upper bound of the limit.
    is_slow_start: whether no chat has waited yet, see `after_begin`.
    """

    limit: float = START
    alone: float = 0.0
    busy: float = 0.0
    seen: int = 0
    until_look: float = 5 * START
    looking: int = 0
    settling: int = 0
    most: float = _MOST
    is_slow_start: bool = True

    @property
    def allowed(self) -> int:
        """The number of requests that may be in flight."""
        limit = self.limit / 2 if self.looking else self.limit
        return max(1, int(limit + 1e-9))


def start(max_concurrency: int | None = None, *, has_one_slot: bool = False) -> Concurrency:
    """The initial state: a limit of 2, or `max_concurrency` if that is lower.

    has_one_slot: whether the node answers such requests one after another, so the limit stays 1.
    """
    if has_one_slot:
        return Concurrency(limit=1.0, most=1.0)
    most = _MOST if max_concurrency is None else float(max_concurrency)
    return Concurrency(limit=min(START, most), most=most)


def adapt(state: Concurrency, sample: LatencySample) -> Concurrency:
    """The state after `sample`."""
    seconds, work, in_flight, is_overload = sample
    limit, alone, busy, seen, until_look, looking, settling, most, is_slow_start = state
    settling = max(0, settling - 1)
    if is_overload:
        # Count it once for all that were in flight together, since they fail together.
        if not settling:
            settling, limit = int(limit) + 1, max(_LEAST, limit * _BACK_OFF)
        return state._replace(limit=limit, settling=settling)
    unit = seconds / work if work > 0.0 else 0.0
    if not 0.0 < unit < _ABSURD:
        return state
    if looking:
        looking -= 1
        if in_flight <= state.allowed:
            alone += min(_FAST, 2.0 / limit) * (unit - alone)
        return state._replace(alone=alone, looking=looking, settling=settling)
    until_look -= 1.0
    if until_look <= 0.0 and limit >= 2.0 and seconds < _LONG_SECONDS:
        until_look = _LOOK_EVERY * limit
        # The requests still in flight, and a round at half the limit.
        looking = int(limit) + max(3, int(limit / 2))
    if not alone:
        alone, busy = unit, unit * in_flight
    else:
        if in_flight <= 1:
            alone += _SLOW * (unit - alone)
        if in_flight >= int(limit + 1e-9):  # otherwise the limit was not reached
            busy += max(_FAST / limit, 1.0 / (seen + 1)) * (unit - busy)
            seen += 1
            ratio = alone / busy if busy > 0.0 else 1.0
            delay = work * (busy - alone)
            limit = min(max(_next(limit, in_flight, ratio, delay), _LEAST), most)
    return Concurrency(limit, alone, busy, seen, until_look, looking, settling, most, is_slow_start)


def has_waited(waited: float, seconds: float) -> bool:
    """Whether a chat that takes `seconds` alone waited so long that all slots were taken."""
    return waited > max(GOOD_DELAY, min(_WAIT * seconds, _LONG_WAIT))


def after_begin(state: Concurrency, begin: Begin) -> Concurrency:
    """The state after a chat began."""
    waited, seconds, active, in_flight, may_grow, is_exact = begin
    if not is_exact and state.settling:
        state = state._replace(settling=state.settling - 1)
    if has_waited(waited, seconds):
        if is_exact:
            limit = max(_LEAST, min(active + 1.0, state.limit))
            return state._replace(limit=limit, is_slow_start=False)
        # As far as an estimate justifies, and once for all that were in flight together.
        if state.settling:
            return state
        limit = max(_LEAST, _BACK_OFF * state.limit, min(active + 1.0, state.limit))
        return state._replace(limit=limit, is_slow_start=False, settling=int(limit))
    if not may_grow or waited > max(GOOD_DELAY, _NO_WAIT * seconds):
        return state
    limit = state.limit
    if state.is_slow_start:
        limit = max(limit, 2.0 * active)
    elif active >= in_flight >= int(limit):
        limit += 1.0
    limit = min(limit, state.most)
    return state if limit == state.limit else state._replace(limit=limit)


def _next(limit: float, in_flight: int, ratio: float, delay: float) -> float:
    """The limit after an answer.

    ratio: seconds alone / seconds when busy.
    delay: the difference between the two, in seconds.
    """
    if delay < GOOD_DELAY:
        return limit + 1.0 / limit
    waiting = in_flight * (1.0 - ratio)
    root = math.sqrt(int(limit + 1e-9))
    if waiting > SHRINK_ABOVE * root:
        # Per round, shed half of the excess.
        return limit - (waiting - SHRINK_ABOVE * root) / 2 / limit
    if waiting < GROW_BELOW * root:
        return limit + 1.0 / limit
    return limit
