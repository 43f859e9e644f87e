"""Node health: work in flight on a node, its recent performance, and its share after a return.

All of it is cheap enough to compute for every request.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiosollol.core.scheduling.cost import Cost

RETURN_SECONDS = 4.0
"""Ramp-up time of a returned node. It must have its full share 10 s after it recovers, and up to
4 s pass before it is probed (`core.routing.circuit_breaker.LONGEST_EJECTION`)."""
_FIRST_SHARE = 0.1

_PEAK_FROM = 4.0
"""Multiple of the expected seconds from which an answer is a peak. Below it, noise and the load of
other programs dominate, which the learned cost follows anyway: with a threshold of 3, decisions get
2 to 3 % worse in benchmarks/routing.py where there is noise or other load."""
LOOK_SECONDS = 2.0
"""Time between requests to a degraded node that check whether it has recovered. Otherwise routing
would avoid it for half a minute; one request every 2 s costs little."""
_PEAK_FADES = 5.0  # seconds after which a peak counts 1/e
_FAILURES_FADE = 20.0
_SMOOTHING = 0.2
_STEADINESS = 0.1
_LEAST_SUCCESS = 0.1  # a node that always fails is left to the breaker
_STALE_FROM, _STALE_HALVES = 30.0, 60.0
_LEAST_STALE = 0.1


def share(returned_at: float, now: float) -> float:
    """The fraction of its requests that a node should get: from 0.1 on its return to 1 after 4 s.

    A returned node has cold caches, and may have failed from overload.
    returned_at: when it came back; -inf if it was never down.
    """
    away = now - returned_at
    if away >= RETURN_SECONDS:
        return 1.0
    return _FIRST_SHARE + (1.0 - _FIRST_SHARE) * max(0.0, away) / RETURN_SECONDS


class Backlog:
    """Seconds of this program's work in flight on a node.

    Assumes that a node computes requests one after another, in order of arrival.
    """

    __slots__ = ("_queue", "_seconds", "_since")

    def __init__(self) -> None:
        self._queue: deque[float] = deque()
        self._seconds = 0.0
        self._since = 0.0  # when it began the first request of the queue

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, seconds: float, now: float) -> None:
        """Record a sent request that should take `seconds`."""
        if not self._queue:
            self._since = now
        self._queue.append(seconds)
        self._seconds += seconds

    def leave(self, seconds: float, now: float) -> None:
        """Record the end of a request, with any outcome. `seconds`: as passed to `enter`."""
        queue = self._queue
        if queue[0] == seconds:
            queue.popleft()
            self._since = now
        else:  # cancelled, or the node runs several at once
            queue.remove(seconds)
        # Never negative from rounding, and exactly zero when idle.
        self._seconds = max(0.0, self._seconds - seconds) if queue else 0.0

    def ahead(self, now: float) -> float:
        """Seconds until the node will have finished all of it.

        The time already spent on the first request counts as done. If that request is late by x
        seconds it is assumed to need x more, so a hanging node is avoided before it answers.
        """
        if not self._queue:
            return 0.0
        first = self._queue[0]
        return max(0.0, self._seconds - first) + abs(first - (now - self._since))


class Steady:
    """A smoothed `Cost`, for choosing among nodes.

    `Cost` forgets within four answers. That suits a batch, whose plan follows a node's current
    speed, but among nearly equal nodes it would pick the one with the last lucky answer. This moves
    a tenth of the way towards `Cost` per answer. If a node becomes slow, `Backlog.ahead` and
    `NodeHealth.pace` react at once. It removes a third to a half of the gap to the oracle
    (benchmarks/routing.py).
    """

    __slots__ = ("_answers", "overhead", "seconds_per_token")

    def __init__(self, cost: Cost) -> None:
        self.overhead = cost.overhead
        self.seconds_per_token = cost.seconds_per_token
        self._answers = 1

    def follow(self, cost: Cost) -> None:
        """Move towards `cost` after another answer."""
        self._answers += 1
        weight = max(_STEADINESS, 1.0 / self._answers)
        self.overhead += weight * (cost.overhead - self.overhead)
        self.seconds_per_token += weight * (cost.seconds_per_token - self.seconds_per_token)

    def seconds(self, tokens: float) -> float:
        """Predicted seconds for one request of `tokens`."""
        return self.overhead + self.seconds_per_token * tokens


class NodeHealth:
    """Recent performance of a node: success rate, last very slow answer, and last request.

    All of it decays with time, so that an avoided node gets another chance.
    """

    __slots__ = ("_asked_at", "_failing", "_failing_at", "_peak", "_peak_at", "_usual")

    def __init__(self, now: float = 0.0) -> None:
        self._asked_at = math.inf  # no request yet, so no outdated knowledge
        self._failing, self._failing_at = 0.0, now  # 1 - success rate
        self._peak, self._peak_at = 1.0, now
        self._usual = 0.0  # smoothed seconds per answer

    def asked(self, now: float) -> None:
        """Record a request sent to it."""
        self._asked_at = now

    def answered(self, seconds: float, expected: float, now: float) -> None:
        """Record an answer after `seconds`, where `expected` seconds were predicted."""
        if self._failing:
            self._failing = (1.0 - self.success_rate(now)) * (1.0 - _SMOOTHING)
            self._failing_at = now
            if self._failing < 1e-3:
                self._failing = 0.0
        if self.outrun(seconds, expected, now):
            pass
        elif self._peak > 1.0:
            self._peak = 1.0 + (self.pace(now) - 1.0) / 2
            self._peak_at = now
            if self._peak < 1.05:
                self._peak = 1.0
        self._usual += (seconds - self._usual) * (_SMOOTHING if self._usual else 1.0)

    def outrun(self, seconds: float, expected: float, now: float) -> bool:
        """Record at least `seconds` where `expected` were predicted. Returns whether it is a peak.

        Peak EWMA: a slower answer counts at once and in full, faster ones gradually
        (Finagle, com.twitter.finagle.loadbalancer.peakewma; linkerd's default balancer).
        """
        due = max(expected, self._usual)
        if not seconds > _PEAK_FROM * due > 0.0:
            return False
        self._peak, self._peak_at = max(seconds / due, self.pace(now)), now
        return True

    @property
    def is_stained(self) -> bool:
        """Whether it recently failed or was very slow."""
        return self._failing > 0.0 or self._peak > 1.0

    def is_due(self, now: float) -> bool:
        """Whether a stained node has had no request for `LOOK_SECONDS` and should get one."""
        return self.is_stained and now - self._asked_at >= LOOK_SECONDS

    def failed(self, now: float) -> None:
        """Record a failure that is the node's fault."""
        failing = 1.0 - self.success_rate(now)
        self._failing, self._failing_at = failing + (1.0 - failing) * _SMOOTHING, now

    def success_rate(self, now: float) -> float:
        """Fraction of recent requests that it answered, 0 to 1; failures decay over 20 s."""
        if not self._failing:
            return 1.0
        return 1.0 - self._failing * math.exp((self._failing_at - now) / _FAILURES_FADE)

    def pace(self, now: float) -> float:
        """Slowdown at its last peak, as a multiple of the expected time; decays to 1 over 5 s."""
        if self._peak == 1.0:
            return 1.0
        return 1.0 + (self._peak - 1.0) * math.exp((self._peak_at - now) / _PEAK_FADES)

    def novelty(self, now: float) -> float:
        """A factor below 1 for a node without recent requests, whose figures may be outdated.

        1 up to 30 s, then halved every minute, at least 0.1. So a node that was ten times too slow
        gets one request after four minutes, and one that is a hundred times too slow none.
        """
        stale = now - self._asked_at - _STALE_FROM
        return max(_LEAST_STALE, 0.5 ** (stale / _STALE_HALVES)) if stale > 0.0 else 1.0

    def factor(self, now: float) -> float:
        """The factor by which to multiply the node's predicted seconds.

        Pace / success rate x novelty: a node that fails half of its requests needs two attempts.
        Exactly 1 for a healthy node in use.
        """
        if not self._failing and self._peak == 1.0 and now - self._asked_at <= _STALE_FROM:
            return 1.0
        success = max(_LEAST_SUCCESS, self.success_rate(now))
        return self.pace(now) / success * self.novelty(now)
