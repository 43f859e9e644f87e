"""Waiting, cancelling and deadlines with plain asyncio, which is faster than anyio.

A live request waits at a gate and runs in a scope. Measured alone, a future took 0.4 us where
`anyio.Event` took 3.3, and a `TaskScope` 0.7 where `anyio.CancelScope` took 3.8.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class FutureGate:
    """A `Gate` for asyncio: a future. Create it in the loop that waits for it."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


class TaskScope:
    """A `Scope` for asyncio: cancels the task inside it, and absorbs that cancellation."""

    __slots__ = ("_cancelling", "_is_cancelled", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._cancelling = 0

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        if not self._is_cancelled or task is None:
            return False
        # A task that was also cancelled from outside stays cancelled.
        is_ours_alone = task.uncancel() <= self._cancelling
        return is_ours_alone and kind is not None and issubclass(kind, asyncio.CancelledError)

    def cancel(self) -> None:
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()


async def finish(task: asyncio.Task[T]) -> T:
    """Wait until `task` ends, even when cancelled; then raise that cancellation."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


class Deadline(Protocol):
    """Something with a deadline. at: on the clock of `time.monotonic`."""

    @property
    def at(self) -> float: ...

    def expire(self) -> None:
        """Called when the deadline has passed."""
        ...


class Deadlines:
    """The deadlines of one event loop's requests, with one timer. Calls `expire` on late ones."""

    def __init__(self) -> None:
        self._open: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = float("inf")

    def __repr__(self) -> str:
        return f"<Deadlines: {len(self._open)} open>"

    def add(self, waiting: Deadline) -> None:
        """Call `waiting.expire` at its deadline, unless it is discarded before."""
        self._open.add(waiting)
        if waiting.at < self._looks_at:
            self._look_at(waiting.at)

    def discard(self, waiting: Deadline) -> None:
        """Forget `waiting`."""
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
