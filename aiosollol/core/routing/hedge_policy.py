"""When a live embedding is sent a second time, to another node, because the first is late.

Late is what 95 % of the recent answers were not ("The Tail at Scale", Dean and Barroso 2013), in
proportion to what had been predicted: a long text that takes long is not late.
"""

from __future__ import annotations

from collections import deque

HEDGE_SHARE = 0.05
_QUANTILE = 0.95
_REMEMBERED = 200
_ENOUGH = 40
"""Answers before which nothing is hedged: with fewer, the 95th percentile is one or two of them."""
_EVERY = 20
_BURST = 5.0
_LEAST_SECONDS = 0.01
"""Sooner than that a second request is not worth its cost, whatever the first does."""


class Hedging:
    """Says when to hedge, from what the recent answers were like, and how often.

    One per pool. Every embedding is to be told of: `after` when it is sent, `observe` when it is
    answered, `take` when the time that `after` named is over and there is no answer yet.
    """

    __slots__ = ("_ratios", "_since", "_tokens", "ratio", "share")

    def __init__(self, share: float = HEDGE_SHARE) -> None:
        self.share = share
        self.ratio: float | None = None
        """Actual over predicted seconds that 95 % of the recent answers stayed below; None until
        there were enough."""
        self._ratios: deque[float] = deque(maxlen=_REMEMBERED)
        self._since = 0
        self._tokens = 0.0

    def after(self, predicted: float, *, is_cold: bool = False) -> float | None:
        """Seconds after which a request should be sent a second time; None is never.

        predicted: seconds until its answer, waiting included. is_cold: the node must load the model
        first. That request is never hedged: the load belongs to it, and would be thrown away with
        it (ollama#8006).
        """
        if self._tokens < _BURST:
            self._tokens += self.share
        if is_cold or self.ratio is None or not self.share or predicted <= 0.0:
            return None
        return max(_LEAST_SECONDS, self.ratio * predicted)

    def take(self) -> bool:
        """Whether the request that is late may be sent again now: at most 5 in 100 are."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def observe(self, seconds: float, predicted: float, *, is_cold: bool = False) -> None:
        """A request was answered after `seconds`. One that was hedged counts when it was answered
        by whichever node: at its full length, from the first sending."""
        if is_cold or predicted <= 0.0:
            return
        self._ratios.append(seconds / predicted)
        self._since += 1
        if self._since >= _EVERY and len(self._ratios) >= _ENOUGH:
            self._since = 0
            ordered = sorted(self._ratios)
            self.ratio = ordered[int(_QUANTILE * len(ordered))]
