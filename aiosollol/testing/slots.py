"""What a fake node computes with: slots, given out in the order of asking, and time."""

from __future__ import annotations

from collections import deque

import anyio


class Slots:
    """A semaphore that is strictly first in, first out, and whose size may change while in use."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiting: deque[anyio.Event] = deque()

    @property
    def size(self) -> int:
        return self._size

    @size.setter
    def size(self, size: int) -> None:
        self._size = size
        self._wake()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Wait for a place and take it."""
        if self._taken < self._size and not self._waiting:
            self._taken += 1
            return
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # cancelled just after the place was given: pass it on
                self.release()
            else:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        """Give a place back; whoever has waited longest has it at once."""
        self._taken -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._taken < self._size:
            self._taken += 1
            self._waiting.popleft().set()


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
