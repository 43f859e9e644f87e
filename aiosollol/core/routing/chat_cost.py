"""Cost of a chat on a node: uncached prompt tokens x prefill + output tokens x decode."""

from __future__ import annotations

from typing import NamedTuple

from aiosollol.core.routing.node_health import Steady
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.timings import ServerTimings

_DECODE_FADE = 0.9
_LEAST_SPREAD = 1e-3
_SERIAL = 0.8
"""Of the seconds per token alone: from this slowdown by each further stream, streams together are
hardly faster than one after another."""
_SMOOTHING = 0.2
_CACHED_FROM = 0.5  # of the prefill saved; less is noise, or the prompt was not cached


class ChatSeconds(NamedTuple):
    """Predicted seconds of a chat that has a slot."""

    prefill: float
    decode: float


class DecodeCost:
    """Seconds per output token, by the number of active streams: base + slope x (active - 1).

    A GPU reads the weights once for all streams of a batch, so the slope is small there; on a CPU
    it may be as large as the base.
    """

    __slots__ = ("_line", "_sums")

    def __init__(self) -> None:
        # Decayed sums of 1, x, y, x^2 and x y (x = active - 1, y seconds per token).
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)
        self._line = (0.0, 0.0)

    def observe(self, seconds_per_token: float, active: float) -> None:
        """Record an answer that was produced beside `active` - 1 others, on average."""
        others = max(0.0, active - 1.0)
        fade = _DECODE_FADE
        n, x, y, xx, xy = self._sums
        n, x, y = fade * n + 1.0, fade * x + others, fade * y + seconds_per_token
        xx, xy = fade * xx + others * others, fade * xy + others * seconds_per_token
        self._sums = n, x, y, xx, xy
        determinant = n * xx - x * x
        slope = 0.0
        if determinant > _LEAST_SPREAD * n * n:
            slope = max(0.0, (n * xy - x * y) / determinant)
        base = (y - slope * x) / n
        if base <= 0.0:
            base, slope = y / (n + x), y / (n + x)
        self._line = base, slope

    def seconds(self, active: float) -> float:
        """Seconds per token beside `active` - 1 other streams."""
        base, slope = self._line
        return base + slope * max(0.0, active - 1.0)

    @property
    def is_serial(self) -> bool:
        """Whether streams together take as long as one after another."""
        base, slope = self._line
        return slope > _SERIAL * base


class ChatCost:
    """The learned cost of chats with a model on a node.

    decode: of the answers.
    observations: answers seen.
    """

    __slots__ = ("_cached", "_cost", "_prefill", "decode", "observations")

    def __init__(self) -> None:
        self.observations = 0
        self.decode = DecodeCost()
        self._cost = Cost.unknown()
        self._prefill: Steady | None = None
        self._cached = 0.0  # the part of the prefill that a conversation saves where it is at home

    def observe(
        self,
        tokens: float,
        prefill: float,
        timings: ServerTimings,
        active: float,
        *,
        is_home: bool,
    ) -> None:
        """Learn from an answer.

        tokens: estimated for the prompt.
        prefill: seconds from a slot to the first part, on the wire too.
        active: requests that the node was answering at once, on average.
        is_home: whether earlier parts of the prompt may be in the node's cache.
        """
        self.observations += 1
        self._observe_prefill(tokens, prefill, is_home=is_home)
        if timings.output_tokens and timings.decode:
            self.decode.observe(timings.decode / timings.output_tokens, active)

    def _observe_prefill(self, tokens: float, seconds: float, *, is_home: bool) -> None:
        if is_home and self._prefill is not None:
            known = self._prefill.seconds(tokens)
            saved = max(0.0, 1.0 - seconds / known) if known else 0.0
            is_cached = saved > _CACHED_FROM
            self._cached += _SMOOTHING * ((saved if is_cached else 0.0) - self._cached)
            if is_cached:
                return
        self._cost = self._cost.observe(tokens, seconds)
        if self._prefill is None:
            self._prefill = Steady(self._cost)
        else:
            self._prefill.follow(self._cost)

    def prefill(self, tokens: float, *, is_home: bool = False) -> float | None:
        """Seconds from a slot to the first part; None if unknown."""
        if self._prefill is None:
            return None
        seconds = self._prefill.seconds(tokens)
        return seconds * (1.0 - self._cached) if is_home else seconds
