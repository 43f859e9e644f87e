"""Deadlines for many requests at once, at the price of one timer.

A timer per request costs more than most of what we do for one: it is made, sorted in, and nearly
always taken out again unused. Requests to a node have about the same deadline, so it is enough to
look when the earliest one is due.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Deadline(Protocol):
    """Something that is to be done by a time. at: as `time.monotonic` counts."""

    @property
    def at(self) -> float: ...

    def expire(self) -> None:
        """It is late."""
        ...


class Deadlines:
    """The deadlines of one event loop's requests: who is late is told so, by `expire`."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = float("inf")

    def __repr__(self) -> str:
        return f"<Deadlines: {len(self._open)} open>"

    def add(self, waiting: Deadline) -> None:
        """Tell `waiting` when it is late, unless it is discarded before."""
        self._open.add(waiting)
        if waiting.at < self._looks_at:
            self._look_at(waiting.at)

    def discard(self, waiting: Deadline) -> None:
        """Forget `waiting`: it was done in time, or is of no interest any more."""
        self._open.discard(waiting)

    def close(self) -> None:
        """Forget all of them."""
        self._open.clear()
        self._cancel_timer()

    def _look_at(self, at: float) -> None:
        self._cancel_timer()
        self._looks_at = at
        delay = max(0.0, at - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._cancel_timer()
        now = time.monotonic()
        for waiting in [each for each in self._open if each.at <= now]:
            self._open.discard(waiting)
            waiting.expire()
        if self._open:
            self._look_at(min(waiting.at for waiting in self._open))

    def _cancel_timer(self) -> None:
        self._looks_at = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
