"""One request at a fake node: what is noted of it, what goes back, and its place in the queue."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from aiosollol.testing.slots import Slots
from aiosollol.wire.answers import HttpResponse


@dataclass(slots=True)
class RecordedRequest:
    """One request in a fake node's `log`.

    at: when it came, on the event loop's clock. seconds: how long it took.
    items: texts in it. status: the HTTP status, 0 if the client left before there was one.
    headers: as they came; without sockets, those that the request alone has.
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
    """What goes back over the wire: `body`, or `parts` where it comes bit by bit.

    length: of the whole body, where it is announced. breaks: the connection breaks at the end of
    `parts`.
    """

    status: int
    content_type: str
    body: bytes = b""
    parts: AsyncGenerator[bytes, None] | None = None
    length: int | None = None
    breaks: bool = False
    is_finished: bool = False


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
    """A reply that is all there."""
    return Reply(answer.status, answer.content_type, answer.body)
