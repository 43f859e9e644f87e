"""Time, as an argument: tests pass a clock of their own."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a queue knows of time, in seconds."""

    def now(self) -> float:
        """Since the epoch: what is written down."""
        ...

    def monotonic(self) -> float:
        """Since whenever, but never back: what waits are measured by."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Until `event` is set, or `seconds` are over."""
        ...


class SystemClock:
    """The real time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
