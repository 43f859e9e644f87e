"""Deadlines for many requests at once, at the price of one timer.

A timer per request costs more than all else that we do for one: it is made, sorted in, and nearly
always taken out again unused. Requests to a node have about the same deadline, so it is enough to
look when the earliest one is due.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType


class Deadlines:
    """The deadlines of one event loop's tasks. ``with deadlines.within(5.0):`` sets one.

    A task that is late is cancelled, and its ``with`` turns that into TimeoutError, just as
    `asyncio.timeout` does.
    """

    def __init__(self) -> None:
        self._open: set[_Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = float("inf")

    def within(self, seconds: float) -> _Deadline:
        """A deadline `seconds` from now, for what the current task does inside the ``with``."""
        return _Deadline(self, time.monotonic() + seconds)

    def close(self) -> None:
        """Forget all deadlines."""
        self._open.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _add(self, deadline: _Deadline) -> None:
        self._open.add(deadline)
        if deadline.at < self._looks_at or self._timer is None:
            self._look_at(deadline.at)

    def _look_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = at
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, at - time.monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        for deadline in [each for each in self._open if each.at <= now]:
            deadline.expire()
        if self._open:
            self._look_at(min(deadline.at for deadline in self._open))


class _Deadline:
    __slots__ = ("_cancelling", "_deadlines", "_is_expired", "_task", "at")

    def __init__(self, deadlines: Deadlines, at: float) -> None:
        self._deadlines = deadlines
        self._is_expired = False
        self.at = at

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines._add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadlines._open.discard(self)
        if (
            self._is_expired
            # Who was also cancelled by somebody else stays cancelled.
            and self._task.uncancel() <= self._cancelling
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def expire(self) -> None:
        self._deadlines._open.discard(self)
        self._is_expired = True
        self._task.cancel()
