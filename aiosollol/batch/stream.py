"""`EmbedStream`: vectors of any number of texts, in input order, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import cast

from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.errors import BatchError, InvalidInput, SollolError

SEGMENT_ITEMS = 2048
SEGMENT_CHARACTERS = 4_000_000
_END = object()
_SEGMENTS_AHEAD = 2
"""Segments in flight: while one is being finished, the nodes already work on the next."""


class EmbedStream:
    """An async iterator of vectors. To stop early, use `aclose` or ``async with``.

    The source is read only as far ahead as needed to keep the nodes busy. Texts are embedded in
    segments of at most `SEGMENT_ITEMS`; with a slow source, a segment has the texts read so far.

    errors: errors by item index, for the items without a vector; their vectors are NaN.
    delivered: number of vectors delivered so far.
    tokens, truncated: as in `BatchReport`, of the segments of those.
    """

    def __init__(
        self,
        source: Iterable[str] | AsyncIterable[str],
        embed: Callable[[list[str]], Awaitable[Embeddings]],
        *,
        stops_at_error: bool,
        on_end: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        """source: the texts. Raises InvalidInput if it is not an iterable of strings.

        embed: returns the vectors of a segment; never raises for single texts.
        stops_at_error: raise BatchError at the first failed item instead of continuing.
        on_end: called once, with what ended the stream: None if it came to its end.
        """
        if isinstance(source, str | bytes) or not isinstance(source, Iterable | AsyncIterable):
            raise InvalidInput(f"texts must be an iterable of strings, not {type(source).__name__}")
        self.errors: dict[int, SollolError] = {}
        self.delivered = 0
        self.tokens = 0
        self.truncated = 0
        self._source = source
        self._embed = embed
        self._stops_at_error = stops_at_error
        self._on_end = on_end
        self._texts: asyncio.Queue[object] = asyncio.Queue(SEGMENT_ITEMS)
        self._ended_by: BaseException | None = None
        self._reader: asyncio.Task[None] | None = None
        self._segments: deque[asyncio.Task[Embeddings]] = deque()
        self._rows: AsyncIterator[Vector] | None = None
        self._is_read = False
        self._source_error: Exception | None = None
        self._is_over = False

    def __repr__(self) -> str:
        return f"<EmbedStream, {self.delivered} delivered, {len(self.errors)} errors>"

    def __aiter__(self) -> EmbedStream:
        return self

    async def __anext__(self) -> Vector:
        if self._is_over:
            raise StopAsyncIteration
        if self._rows is None:
            self._rows = self._deliver()
        try:
            vector = await anext(self._rows)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_over and task is not None and not task.cancelling():
                # The awaited task was cancelled, not this one: another task closed the stream.
                raise self._ended_by or StopAsyncIteration from None
            await self.aclose()
            raise
        except BaseException as error:
            was_closed = self._is_over
            self._tell(None if isinstance(error, StopAsyncIteration) else error)
            await self.aclose()
            if was_closed and self._ended_by is not None:
                raise self._ended_by from None
            raise
        self.delivered += 1
        return vector

    async def __aenter__(self) -> EmbedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, error: BaseException | None = None) -> None:
        """Stop reading, and cancel the requests in flight. Idempotent.

        A task that waits for a vector gets `error`, or the end of the stream.
        """
        self._is_over = True
        self._ended_by = self._ended_by or error
        self._tell(error or GeneratorExit())
        tasks: list[asyncio.Task[None] | asyncio.Task[Embeddings]] = [*self._segments]
        self._segments.clear()
        if self._reader is not None:
            tasks.append(self._reader)
        for task in tasks:
            task.cancel()
        with suppress(asyncio.QueueFull):  # wakes a waiting `get`; if full, none is waiting
            self._texts.put_nowait(_END)
        # Discard their results, including errors.
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(self, error: BaseException | None) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(error)

    async def _deliver(self) -> AsyncIterator[Vector]:
        self._reader = asyncio.create_task(self._read(), name="read texts to embed")
        start = 0
        while True:
            while not self._is_read and len(self._segments) < _SEGMENTS_AHEAD:
                # Waiting for the source must not delay vectors that are ready.
                if self._segments and (self._segments[0].done() or self._texts.empty()):
                    break
                segment = await self._next_segment()
                if segment:
                    task = asyncio.ensure_future(self._embed(segment))
                    self._segments.append(task)
            if not self._segments:
                if self._source_error is not None:
                    raise self._source_error
                return
            embeddings = await self._segments[0]
            self._segments.popleft()
            if embeddings.report is not None:
                self.tokens += embeddings.report.tokens
                self.truncated += embeddings.report.truncated
            self._note_errors(embeddings, start)
            for row in embeddings:
                yield row
            start += len(embeddings)

    async def _next_segment(self) -> list[str]:
        """Wait for a text, then take it with the other texts read so far, within the limits."""
        segment: list[str] = []
        characters = 0
        while len(segment) < SEGMENT_ITEMS and characters < SEGMENT_CHARACTERS:
            if segment and self._texts.empty():
                # Let the reader run once: a fast source has more.
                await asyncio.sleep(0)
                if self._texts.empty():
                    break
            text = await self._texts.get()
            if text is _END:
                self._is_read = True
                break
            segment.append(cast(str, text))  # anything else becomes an error of the item
            characters += len(text) if isinstance(text, str) else 0
        return segment

    async def _read(self) -> None:
        try:
            if isinstance(self._source, AsyncIterable):
                async for text in self._source:
                    await self._texts.put(text)
            else:
                for text in self._source:
                    await self._texts.put(text)
        except Exception as error:  # the caller's, raised after the vectors before it
            self._source_error = error
        await self._texts.put(_END)

    def _note_errors(self, embeddings: Embeddings, start: int) -> None:
        self.errors.update({start + row: error for row, error in embeddings.errors.items()})
        if embeddings.errors and self._stops_at_error:
            raise BatchError(embeddings, embeddings.errors)
