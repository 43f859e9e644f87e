"""Readings of the sensors for whoever asks, without holding up the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from aiosollol.wire.agent import AgentReport

T = TypeVar("T")

FRESH_SECONDS = 1.0
READ_SECONDS = 1.0
"""A GPU that has fallen off its bus can hold NVML for minutes. Who asks is told so, before a pool
gives up after two seconds."""


class Sensors(Protocol):
    """Where readings come from: `MachineSensors`, or a fake. Both methods may block."""

    def read(self) -> AgentReport: ...

    def close(self) -> None: ...


class Readings:
    """The newest reading of `sensors`, taken at most once a second, in a thread.

    However many ask, there is one thread at most, and a reading that hangs is not tried again
    beside itself. timeout: seconds that one who asks waits at most. clock: seconds, for tests;
    that of the event loop unless given.
    """

    def __init__(
        self,
        sensors: Sensors,
        *,
        timeout: float = READ_SECONDS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._sensors = sensors
        self._timeout = timeout
        self._clock = clock
        self._newest: AgentReport | None = None
        self._taken = 0.0
        self._running: asyncio.Future[AgentReport] | None = None

    async def latest(self, timeout: float | None = None) -> AgentReport:
        """How the machine is: a reading that began less than a second ago, or one taken now.

        Raises TimeoutError when that takes more than `timeout` seconds, and whatever the sensors
        raise.
        """
        now = (self._clock or asyncio.get_running_loop().time)()
        if self._newest is not None and now - self._taken < FRESH_SECONDS:
            return self._newest
        if self._running is None:
            self._running = in_thread(self._sensors.read)
            self._running.add_done_callback(lambda done: self._keep(done, now))
        # wait, unlike wait_for, leaves the reading to the others who wait for it.
        patience = self._timeout if timeout is None else timeout
        done, _ = await asyncio.wait([self._running], timeout=patience)
        if not done:
            raise TimeoutError("the sensors of this machine do not answer in time")
        return done.pop().result()

    async def aclose(self) -> None:
        """Close the sensors, unless they hang; then the process must end without that."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=self._timeout)
        if self._running is None:
            await asyncio.wait([in_thread(self._sensors.close)], timeout=self._timeout)

    def _keep(self, done: asyncio.Future[AgentReport], began: float) -> None:
        self._running = None
        if not done.cancelled() and done.exception() is None:
            self._newest, self._taken = done.result(), began


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `function`, from a thread that does not keep the process alive.

    `asyncio.to_thread` uses threads that are waited for when the process ends, however long.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="aiosollol-agent", daemon=True).start()
    return future
