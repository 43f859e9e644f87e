"""Publishes a pool's events to observers. Costs nothing without observers."""

from __future__ import annotations

from collections import deque
from weakref import ReferenceType, ref

import anyio

from aiosollol.core.events import PoolEvent

_KEPT = 10_000


class EventStream:
    """The events from now on, as an async iterator and context manager; `close` ends it.

    missed: number of events dropped, oldest first, because the stream was read too slowly.
    """

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._waiting: deque[PoolEvent] = deque(maxlen=_KEPT)
        self._arrived = anyio.Event()
        self._is_closed = False
        self.missed = 0

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> PoolEvent:
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            if self._arrived.is_set():  # several tasks may wait for the same event
                self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration once the buffered events are read. Idempotent."""
        self._is_closed = True
        self._hub.forget(self)
        self._arrived.set()

    def push(self, event: PoolEvent) -> None:
        """Add an event. For the hub only."""
        self.missed += len(self._waiting) == _KEPT
        self._waiting.append(event)
        self._arrived.set()


class EventHub:
    """Distributes events to streams. On a hot path, check `is_watched` before creating one."""

    def __init__(self) -> None:
        # Weak, so that a stream that is dropped without `close`, as by `break`, is freed.
        self._streams: tuple[ReferenceType[EventStream], ...] = ()

    @property
    def is_watched(self) -> bool:
        return bool(self._streams)

    def watch(self) -> EventStream:
        """A stream of the events from now on."""
        stream = EventStream(self)
        self._streams += (ref(stream, self._drop),)
        return stream

    def forget(self, stream: EventStream) -> None:
        self._streams = tuple(each for each in self._streams if each() is not stream)

    def _drop(self, gone: ReferenceType[EventStream]) -> None:
        self._streams = tuple(each for each in self._streams if each is not gone)

    def tell(self, event: PoolEvent) -> None:
        """Publish an event."""
        for each in self._streams:
            if (stream := each()) is not None:
                stream.push(event)

    def close(self) -> None:
        """End all streams."""
        for each in self._streams:
            if (stream := each()) is not None:
                stream.close()
