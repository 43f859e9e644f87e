"""Costs, paid by waiting."""

from __future__ import annotations

import anyio


class Pace:
    """Pays costs against the clock: what one sleep takes too long, the next takes less.

    So a thousand items of 1 ms take a second also where a sleep of 1 ms takes 2.
    """

    def __init__(self) -> None:
        self._due = anyio.current_time()

    async def pay(self, seconds: float) -> None:
        self._due += seconds
        if seconds and anyio.current_time() < self._due:
            await anyio.sleep_until(self._due)


def nanoseconds(seconds: float) -> int:
    """`seconds` as Ollama counts them. It leaves out a duration of zero, and no real one is."""
    return max(1, round(seconds * 1e9))
