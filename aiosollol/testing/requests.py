"""One request at a fake node: its record, its reply, and its slot."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

import anyio

from aiosollol.wire.ollama.server_responses import HttpResponse


@dataclass(slots=True)
class RecordedRequest:
    """One request in a fake node's `log`.

    at: time of arrival, on the event loop's clock. seconds: its duration.
    items: number of texts. status: the HTTP status, 0 if the client left before there was one.
    headers: as received; without sockets, only those specific to the request.
    """

    at: float
    method: str
    path: str
    model: str = ""
    items: int = 0
    status: int = 0
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Reply:
    """The response: `body`, or `parts` if it is streamed.

    status: the HTTP status; 0 if the connection breaks before the answer begins.
    length: of the whole body, if it is announced. breaks: whether the connection breaks after
    `parts`. headers: those besides the content type.
    """

    status: int
    content_type: str
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    length: int | None = None
    breaks: bool = False
    is_finished: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class SimulatedRequest:
    """A request being answered, and whether it has a slot."""

    def __init__(self, record: RecordedRequest, slots: Slots) -> None:
        self.record = record
        self._slots = slots
        self._has_slot = False

    async def acquire(self) -> None:
        await self._slots.acquire()
        self._has_slot = True

    def release(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._slots.release()


def whole(answer: HttpResponse) -> Reply:
    """A reply that is not streamed."""
    return Reply(answer.status, answer.content_type, answer.body)


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
        """The number of tasks that wait for a slot."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Wait for a slot and take it."""
        if self._taken < self._size and not self._waiting:
            self._taken += 1
            return
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():  # cancelled just after getting the slot: pass it on
                self.release()
            else:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        """Give a slot back; the task that has waited longest gets it at once."""
        self._taken -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._taken < self._size:
            self._taken += 1
            self._waiting.popleft().set()


class Pace:
    """Sleeps for costs against the clock: a sleep that overruns shortens the next.

    A thousand items of 1 ms take a second even if a sleep of 1 ms takes 2.
    """

    def __init__(self) -> None:
        self._due = anyio.current_time()

    async def pay(self, seconds: float) -> None:
        self._due += seconds
        if seconds and anyio.current_time() < self._due:
            await anyio.sleep_until(self._due)


def nanoseconds(seconds: float) -> int:
    """`seconds` in nanoseconds, as Ollama reports them; at least 1, as it leaves out zeros."""
    return max(1, round(seconds * 1e9))
