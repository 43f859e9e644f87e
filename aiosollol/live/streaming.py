"""`ReplyStream`: the parts of a streamed answer, as they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeAlias, TypeVar

from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.timings import ServerTimings
from aiosollol.errors import NodeError, StreamCutOff
from aiosollol.wire.ollama.chat import cut_off, is_last
from aiosollol.wire.ollama.client import LineSplitter
from aiosollol.wire.ollama.timings import read_timings

Part = TypeVar("Part", bound=ChatReply | GeneratedText)

_MOST_TOKENS = 10**9


OnEnd: TypeAlias = "Callable[[ReplyStream[Part], BaseException | None], None]"
"""Called once, with the exception that ended the stream; None if it was complete."""


def tokens_of(part: ChatReply | GeneratedText) -> int:
    """Tokens of prompt and answer, as counted by the server; 0 if it does not say."""
    return counted(_fields_of(part))


def token_counts(part: ChatReply | GeneratedText) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, as counted by the server; 0 if it does not say."""
    fields = _fields_of(part)
    return _count(fields, "prompt_eval_count"), _count(fields, "eval_count")


def timings_of(part: ChatReply | GeneratedText) -> ServerTimings | None:
    """The server's timings of a whole answer or a last part; None if it does not report them."""
    return read_timings(_fields_of(part))


def counted(answer: Mapping[str, Any]) -> int:
    """As `tokens_of`, of an undecoded answer."""
    tokens = _count(answer, "prompt_eval_count") + _count(answer, "eval_count")
    return tokens + _count(answer, "prompt_tokens")  # of OpenAI's endpoints


def _count(answer: Mapping[str, Any], name: str) -> int:
    count = answer.get(name)
    return count if isinstance(count, int) and 0 < count < _MOST_TOKENS else 0


def _fields_of(part: ChatReply | GeneratedText) -> Mapping[str, Any]:
    return part if isinstance(part, ChatReply) else part.answer


class ReplyStream(Generic[Part]):
    """A streamed answer. Iterate over it once with ``async for``.

    `aclose` ends it early; so does ``async with``. If the stream breaks off or the node reports an
    error, the iteration raises StreamCutOff, with the number of parts delivered and the cause.

    node: the name of the node that answers.
    parts: how many parts were delivered so far.
    tokens, timings: see `tokens_of` and `timings_of`; 0 and None until the stream is over.
    is_waiting: whether a task is waiting for the next part.
    """

    def __init__(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        load: Callable[[str, bytes], Part],
        on_end: OnEnd[Part],
    ) -> None:
        self.node = node
        self.parts = 0
        self.tokens = 0
        self.timings: ServerTimings | None = None
        self._response = response
        self._load = load
        self._on_end = on_end
        self._pieces: AsyncIterator[bytes] | None = None
        self._lines = LineSplitter()
        self._ready: deque[bytes] = deque()
        self._first: Part | None = None
        self._is_over = False
        self._error: Exception | None = None
        self._closing: Exception | None = None
        self.is_waiting = False

    def __repr__(self) -> str:
        return f"<ReplyStream from {self.node}, {self.parts} parts>"

    def __del__(self) -> None:
        # Left by `break`: give the slot back. The response closes itself likewise.
        if not self._is_over:
            self._is_over = True
            self._on_end(self, GeneratorExit())

    def follow(self, told: Callable[[BaseException | None], None]) -> None:
        """Call `told` once it is over, too, with what ended it: None if it came to its end."""
        on_end = self._on_end

        def tell_both(stream: ReplyStream[Part], error: BaseException | None) -> None:
            on_end(stream, error)
            told(error)

        if self._is_over:
            told(self._error or GeneratorExit())
        else:
            self._on_end = tell_both

    async def open(self) -> None:
        """Send the request and wait for the first part, while another node can still be asked.

        Raises NodeError.
        """
        self.is_waiting = True
        try:
            self._pieces = await self._response.__aenter__()
            await self._fill()
            # Decode it now: it may be an error or a web page.
            self._take_first()
        except BaseException as error:
            await self._end(error)
            raise
        finally:
            self.is_waiting = False

    def _take_first(self) -> None:
        self._first = self._load(self.node, self._ready.popleft())

    def __aiter__(self) -> ReplyStream[Part]:
        return self

    async def __anext__(self) -> Part:
        self._begin_reading()
        try:
            if self._first is not None:
                part, self._first = self._first, None
            else:
                if not self._ready:
                    await self._fill()
                part = self._load(self.node, self._ready.popleft())
        except BaseException as error:
            await self._break_off(error)
            raise
        finally:
            self.is_waiting = False
        self.parts += 1
        if is_last(part):
            self.tokens = tokens_of(part)
            self.timings = timings_of(part)
            await self._end(None)
        return part

    def _begin_reading(self) -> None:
        """Begin a read. Raises StopAsyncIteration, or the error that ended the stream."""
        if self._is_over:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        if self.is_waiting:
            raise RuntimeError("two tasks read one stream at the same time")
        self.is_waiting = True

    async def _break_off(self, error: BaseException) -> None:
        """End the stream for `error`, and raise the reader's exception if that is another one."""
        await self._end(error)
        failure = error if isinstance(error, NodeError) else None
        # Later reads raise it too, or it would look like a complete stream.
        self._error = self._closing or self._cut_off(failure)
        if failure is not None and self._error is not failure:
            raise self._error from failure

    async def __aenter__(self) -> ReplyStream[Part]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, error: Exception | None = None) -> None:
        """End the stream, and cancel the node's work on it. Idempotent.

        error: raised to the reader; without it, the iteration just ends.
        """
        if self.is_waiting and error is not None:
            self._closing = error  # the reader's task ends it, when its connection is closed
            return
        if not self._is_over:
            self._error = error
        await self._end(GeneratorExit())

    async def _fill(self) -> None:
        """Wait for a whole line."""
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

    def _cut_off(self, error: NodeError | None) -> NodeError:
        """The reader's exception: `error` itself before the first part, StreamCutOff after it."""
        if error is not None and (not self.parts or isinstance(error, StreamCutOff)):
            return error
        why = "the iteration was cancelled" if error is None else error.detail
        detail = f"{why}, after {self.parts} parts were delivered"
        return StreamCutOff(self.node, detail, delivered=self.parts)

    async def _end(self, error: BaseException | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        # A stream that we close is no failure of the node.
        self._on_end(self, error if self._closing is None else GeneratorExit())
        await self._response.__aexit__(None, None, None)
