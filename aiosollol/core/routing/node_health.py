"""What share of the requests a node deserves: by what is under way on it, how it did lately, and
how long it has been back.

Three small values that a node carries, each cheap enough to ask for at every request.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiosollol.core.scheduling.cost import Cost

RETURN_SECONDS = 4.0
"""How long a node that was away is treated gently: it is to have its share again 10 s after it is
well, and up to 4 s of that are over before it is asked
(`core.routing.circuit_breaker.LONGEST_EJECTION`)."""
_FIRST_SHARE = 0.1

_PEAK_FROM = 4.0
"""Times the expected seconds from which an answer is a peak. Less than that is chance, or the work
of other programs, which the learned cost follows by itself: to jump at it makes decisions worse (in
benchmarks/routing.py by 2 to 3 % where noise or other programs are, with a threshold of 3)."""
LOOK_SECONDS = 2.0
"""How long a node that gave cause for complaint is left alone. Routing would avoid it for half a
minute, and could not know that it is well again; one request every 2 s is little."""
_PEAK_FADES = 5.0  # seconds until a peak counts 1/e
_FAILURES_FADE = 20.0
_SMOOTHING = 0.2
_STEADINESS = 0.1
_LEAST_SUCCESS = 0.1  # a node that always fails is the breaker's business
_STALE_FROM, _STALE_HALVES = 30.0, 60.0
_LEAST_STALE = 0.1


def share(returned_at: float, now: float) -> float:
    """The share of its requests that a node should get, from 0.1 when it returns to 1 after 4 s.

    A node that was away has cold caches, and perhaps died of its load. returned_at: when it came
    back, minus infinity if it was never away.
    """
    away = now - returned_at
    if away >= RETURN_SECONDS:
        return 1.0
    return _FIRST_SHARE + (1.0 - _FIRST_SHARE) * max(0.0, away) / RETURN_SECONDS


class Backlog:
    """The seconds of work under way on a node, as far as this program gave it to it.

    A node computes one request after another, in the order in which they came.
    """

    __slots__ = ("_queue", "_seconds", "_since")

    def __init__(self) -> None:
        self._queue: deque[float] = deque()
        self._seconds = 0.0
        self._since = 0.0  # when it began with the first of the queue

    def __len__(self) -> int:
        return len(self._queue)

    def enter(self, seconds: float, now: float) -> None:
        """A request that should take `seconds` was sent."""
        if not self._queue:
            self._since = now
        self._queue.append(seconds)
        self._seconds += seconds

    def leave(self, seconds: float, now: float) -> None:
        """A request ended, however it did. `seconds` must be what `enter` was told."""
        queue = self._queue
        if queue[0] == seconds:
            queue.popleft()
            self._since = now
        else:  # given up, or the node does several at once
            queue.remove(seconds)
        # Not below zero by rounding, and exactly zero at rest.
        self._seconds = max(0.0, self._seconds - seconds) if queue else 0.0

    def ahead(self, now: float) -> float:
        """Seconds until the node will be done with all of it.

        What it has worked on the first request counts as done. When that one is late by x seconds
        it is taken to need x more: so a node that hangs is avoided before it has answered.
        """
        if not self._queue:
            return 0.0
        first = self._queue[0]
        return max(0.0, self._seconds - first) + abs(first - (now - self._since))


class Steady:
    """What a request costs on a node, without the jitter of `Cost`: for choosing among nodes.

    `Cost` forgets within four answers. That is right for a batch, whose plan follows what a node
    does now; but to choose among many that are nearly equal by such figures is to choose whichever
    was last lucky. This follows the line of `Cost` at a tenth of the way for each answer. When a
    node becomes slow, `Backlog.ahead` and `NodeHealth.pace` notice it at once. It takes away a
    third to a half of the distance to the oracle (benchmarks/routing.py).
    """

    __slots__ = ("_answers", "overhead", "seconds_per_token")

    def __init__(self, cost: Cost) -> None:
        self.overhead = cost.overhead
        self.seconds_per_token = cost.seconds_per_token
        self._answers = 1

    def follow(self, cost: Cost) -> None:
        """`cost` has learned from another answer."""
        self._answers += 1
        weight = max(_STEADINESS, 1.0 / self._answers)
        self.overhead += weight * (cost.overhead - self.overhead)
        self.seconds_per_token += weight * (cost.seconds_per_token - self.seconds_per_token)

    def seconds(self, tokens: float) -> float:
        """Predicted seconds for one request of `tokens`."""
        return self.overhead + self.seconds_per_token * tokens


class NodeHealth:
    """How a node did lately: its success rate, its last very slow answer, and when it was asked.

    All of it fades with time: a node that nobody asks is given another chance.
    """

    __slots__ = ("_asked_at", "_failing", "_failing_at", "_peak", "_peak_at", "_usual")

    def __init__(self, now: float = 0.0) -> None:
        self._asked_at = math.inf  # never, so nothing that is known of it is outdated
        self._failing, self._failing_at = 0.0, now  # 1 - success rate
        self._peak, self._peak_at = 1.0, now
        self._usual = 0.0  # seconds that its answers take

    def asked(self, now: float) -> None:
        """A request was sent to it."""
        self._asked_at = now

    def answered(self, seconds: float, expected: float, now: float) -> None:
        """It answered after `seconds`, where `expected` had been predicted."""
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
        """It took `seconds` or more, where `expected` had been predicted. Whether that is a peak.

        Peak EWMA: what is slower counts at once and in full, what is faster bit by bit
        (Finagle, com.twitter.finagle.loadbalancer.peakewma; linkerd's default balancer).
        """
        due = max(expected, self._usual)
        if not seconds > _PEAK_FROM * due > 0.0:
            return False
        self._peak, self._peak_at = max(seconds / due, self.pace(now)), now
        return True

    @property
    def is_stained(self) -> bool:
        """Whether it gave cause for complaint."""
        return self._failing > 0.0 or self._peak > 1.0

    def is_due(self, now: float) -> bool:
        """Whether a node with a stain was left alone for so long that it should be looked at."""
        return self.is_stained and now - self._asked_at >= LOOK_SECONDS

    def failed(self, now: float) -> None:
        """It failed a request, and is to blame."""
        failing = 1.0 - self.success_rate(now)
        self._failing, self._failing_at = failing + (1.0 - failing) * _SMOOTHING, now

    def success_rate(self, now: float) -> float:
        """Share of the recent requests that it answered, 0 to 1; failures fade within 20 s."""
        if not self._failing:
            return 1.0
        return 1.0 - self._failing * math.exp((self._failing_at - now) / _FAILURES_FADE)

    def pace(self, now: float) -> float:
        """Times what it should take that it took at its last peak, fading to 1 within 5 s."""
        if self._peak == 1.0:
            return 1.0
        return 1.0 + (self._peak - 1.0) * math.exp((self._peak_at - now) / _PEAK_FADES)

    def novelty(self, now: float) -> float:
        """A factor below 1 for a node that was not asked for long: 1 up to 30 s, then half a
        minute by minute, at least 0.1.

        What is known of it may be outdated: one that was ten times too slow is asked again after
        four minutes, by one request, and one that is a hundred times too slow never.
        """
        stale = now - self._asked_at - _STALE_FROM
        return max(_LEAST_STALE, 0.5 ** (stale / _STALE_HALVES)) if stale > 0.0 else 1.0

    def factor(self, now: float) -> float:
        """By how much the predicted seconds of the node should be multiplied.

        Pace over success rate, as one that fails half of its requests needs two attempts, times
        `novelty`. Exactly 1 for a node in use that gave no cause for complaint.
        """
        if not self._failing and self._peak == 1.0 and now - self._asked_at <= _STALE_FROM:
            return 1.0
        success = max(_LEAST_SUCCESS, self.success_rate(now))
        return self.pace(now) / success * self.novelty(now)
