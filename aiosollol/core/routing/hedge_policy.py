"""When to hedge a live embedding: send it to a second node because the first is late.

A request is late once it exceeds the 95th percentile of recent answers ("The Tail at Scale", Dean
and Barroso 2013), relative to its predicted time: a long text that takes long is not late.
"""

from __future__ import annotations

from collections import deque

HEDGE_SHARE = 0.05
_QUANTILE = 0.95
_REMEMBERED = 200
_ENOUGH = 40
"""Answers needed before hedging: with fewer, the 95th percentile rests on one or two of them."""
_EVERY = 20
_BURST = 5.0
_LEAST_SECONDS = 0.01
"""Minimum delay: a second request sooner than this is not worth its cost."""


class Hedging:
    """Decides when to hedge, from recent answers, within a budget.

    One per pool. For every embedding call `after` when it is sent, `observe` when it is answered,
    and `take` if there is no answer within the time that `after` returned.
    """

    __slots__ = ("_ratios", "_since", "_tokens", "ratio", "share")

    def __init__(self, share: float = HEDGE_SHARE) -> None:
        self.share = share
        self.ratio: float | None = None
        """95th percentile of actual / predicted seconds; None until there are enough answers."""
        self._ratios: deque[float] = deque(maxlen=_REMEMBERED)
        self._since = 0
        self._tokens = 0.0

    def after(self, predicted: float, *, is_cold: bool = False) -> float | None:
        """Seconds after which to hedge a request; None for never.

        predicted: seconds until its answer, including waiting.
        is_cold: the node must load the model first. Such a request is never hedged: cancelling it
        would abort the load (ollama#8006).
        """
        if self._tokens < _BURST:
            self._tokens += self.share
        if is_cold or self.ratio is None or not self.share or predicted <= 0.0:
            return None
        return max(_LEAST_SECONDS, self.ratio * predicted)

    def take(self) -> bool:
        """Take a hedge from the budget, 5 % of requests; False if it is used up."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def observe(self, seconds: float, predicted: float, *, is_cold: bool = False) -> None:
        """Record an answer after `seconds`.

        A hedged request counts once, from the first send until either node answered.
        """
        if is_cold or predicted <= 0.0:
            return
        self._ratios.append(seconds / predicted)
        self._since += 1
        if self._since >= _EVERY and len(self._ratios) >= _ENOUGH:
            self._since = 0
            ordered = sorted(self._ratios)
            self.ratio = ordered[int(_QUANTILE * len(ordered))]
