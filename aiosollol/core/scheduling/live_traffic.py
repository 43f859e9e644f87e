"""Live requests beside batches: whether there are any, and the size of chunks meanwhile."""

from __future__ import annotations

import math

from aiosollol.core.scheduling.cost import Cost

LIVE_LATENCY_TARGET = 0.05
"""Seconds of a chunk while there are live requests. One of them waits for one or two chunks."""
LIVE_SECONDS = 10.0
"""How long after a live request the next one is expected."""
_LEAST_OVERHEADS = 10.0
"""A chunk takes at least this multiple of the overhead of a request."""


class LiveTraffic:
    """Live requests of one kind for one model, on all nodes.

    last_at: when the last one was sent or had to wait; -inf before the first.
    """

    __slots__ = ("last_at",)

    def __init__(self) -> None:
        self.last_at = -math.inf

    def note(self, now: float) -> None:
        """Record that one was sent or has to wait."""
        self.last_at = now

    def is_expected(self, now: float) -> bool:
        """Whether there was such a request in the last `LIVE_SECONDS`."""
        return now - self.last_at < LIVE_SECONDS


def live_chunk_seconds(cost: Cost, target: float, usual: float) -> float:
    """Maximum duration of a chunk on a node that may get live requests.

    target: the duration to aim at. usual: the maximum without live requests.
    """
    return min(usual, max(target, _LEAST_OVERHEADS * cost.overhead))
