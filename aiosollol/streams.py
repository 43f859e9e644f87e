"""`ReplyStream`: the parts of a streamed answer, as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, TypeVar

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.wire.chat import cut_off, is_last
from aiosollol.wire.ndjson import LineSplitter

Part = TypeVar("Part", bound=ChatReply | GeneratedText)


class ReplyStream(Generic[Part]):
    """Iterate over it once with ``async for``; `aclose` or ``async with`` ends it when you say so.

    Raises NodeError from the iteration if the node reports an error or the stream is cut off.
    node: the name of the node that answers. parts: how many parts were delivered so far.
    is_waiting: whether some task waits for its next part at present.
    """

    def __init__(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        load: Callable[[str, bytes], Part],
        on_end: Callable[[ReplyStream[Part], BaseException | None], None],
    ) -> None:
        """`on_end` is called once, with what ended the stream: None if it came to its end."""
        self.node = node
        self.parts = 0
        self._response = response
        self._load = load
        self._on_end = on_end
        self._pieces: AsyncIterator[bytes] | None = None
        self._lines = LineSplitter()
        self._ready: deque[bytes] = deque()
        self._is_over = False
        self._error: Exception | None = None
        self.is_waiting = False

    def __repr__(self) -> str:
        return f"<ReplyStream from {self.node}, {self.parts} parts>"

    def __del__(self) -> None:
        # Left by `break`, as one does: give the node back. The response closes itself likewise.
        if not self._is_over:
            self._is_over = True
            self._on_end(self, GeneratorExit())

    async def open(self) -> None:
        """Send the request and wait for the first part, so that failing over is still possible.

        Raises NodeError.
        """
        self.is_waiting = True
        try:
            self._pieces = await self._response.__aenter__()
            await self._fill()
        except BaseException as error:
            await self._end(error)
            raise
        finally:
            self.is_waiting = False

    def __aiter__(self) -> ReplyStream[Part]:
        return self

    async def __anext__(self) -> Part:
        if self._is_over:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        if self.is_waiting:
            raise RuntimeError("two tasks read one stream at the same time")
        self.is_waiting = True
        try:
            if not self._ready:
                await self._fill()
            part = self._load(self.node, self._ready.popleft())
        except BaseException as error:
            await self._end(error)
            raise
        finally:
            self.is_waiting = False
        self.parts += 1
        if is_last(part):
            await self._end(None)
        return part

    async def __aenter__(self) -> ReplyStream[Part]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, error: Exception | None = None) -> None:
        """Stop. What the node is still working on is cancelled. Idempotent.

        With an `error`, whoever reads on gets that instead of what would look like the end.
        """
        if not self._is_over:
            self._error = error
        await self._end(GeneratorExit())

    async def _fill(self) -> None:
        """Wait until a whole line is there."""
        assert self._pieces is not None
        while not self._ready:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                rest = self._lines.rest()
                if not rest:
                    raise cut_off(self.node, self.parts) from None
                self._ready.append(rest)  # a last line need not end with a line end
                self._lines = LineSplitter()
            else:
                self._ready.extend(self._lines.feed(piece))

    async def _end(self, error: BaseException | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._on_end(self, error)
        await self._response.__aexit__(None, None, None)
