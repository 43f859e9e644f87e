"""Answers of nodes passed on as bytes, without decoding them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import anyio
import orjson

from aiosollol.core.routing.explain import Setback
from aiosollol.core.timings import ServerTimings
from aiosollol.errors import NodeError, ProtocolError
from aiosollol.live.calls import EmbedCall, TalkCall
from aiosollol.live.streaming import OnEnd, ReplyStream, counted
from aiosollol.wire.ollama.chat import cut_off, load_part
from aiosollol.wire.ollama.client import outline, shown, without_mark
from aiosollol.wire.ollama.embeddings import check_one
from aiosollol.wire.ollama.timings import read_timings

_END_SECONDS = 1.0
"""How long to wait for the end of a stream after its last line, to keep the connection."""
_NOT_LAST = b',"done":false}\n'
_BACKSLASH = ord("\\")
_NOTHING: Mapping[str, Any] = {}
_MAX_LINE = 1 << 26  # a line that never ends must not fill the memory


class Relayed(NamedTuple):
    """A whole answer.

    node: the name of the node that answered.
    setbacks: attempts before it that failed or were late.
    tokens: of prompt and answer, as counted by the server; 0 if it does not say.
    timings: None if the server does not report them.
    """

    node: str
    body: bytes
    setbacks: Sequence[Setback] = ()
    tokens: int = 0
    timings: ServerTimings | None = None


class RelayCall(TalkCall[Any]):
    """A request whose answer is not decoded. kind: "embed", "chat", "generate" or "load"."""

    __slots__ = ()

    def check(self, part: Relayed, dim: int) -> None:
        check_one(part.node, part.body, dim)

    def stream(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        on_end: OnEnd[Any],
    ) -> RelayStream:
        """Its streamed answer. The arguments are those of `RelayStream`."""
        return RelayStream(node, response, on_end)

    def tokens_of(self, part: Relayed) -> int:
        """See `Relayed`."""
        return part.tokens

    def timings_of(self, part: Relayed) -> ServerTimings | None:
        """See `Relayed`."""
        return part.timings

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this call and computes nothing."""
        if "embed" not in self.path:
            return TalkCall.load_request(self)
        call = EmbedCall(self.model, (), b"", False, 0.0, loading=self.loading)
        return call.load_request()


def read_talk(node: str, body: bytes) -> Relayed:
    """A whole answer of chat or generate. Raises NodeError if it is not one."""
    return _relayed(node, body, load_part(node, outline(body)))


def read_vector(node: str, body: bytes) -> Relayed:
    """An answer with one vector, of any embedding endpoint. Raises NodeError if it is not one.

    The vector is JSON numbers or base64. An answer to no text has no vector and is valid too.
    """
    fields = load_part(node, outline(body))
    if not ("embeddings" in fields or "embedding" in fields or _has_entry(fields)):
        raise ProtocolError(node, f"answered {shown(body)}, which has no embeddings")
    return _relayed(node, body, fields)


def read_vectors_of_one(node: str, body: bytes) -> Relayed:
    """An answer of /api/embed to one text. Raises NodeError if it has not exactly one vector."""
    fields = load_part(node, outline(body))
    vectors = fields.get("embeddings")
    if not (isinstance(vectors, list) and len(vectors) == 1 and vectors[0]):
        raise ProtocolError(node, f"answered {shown(body)}, which is not the vector of one text")
    return _relayed(node, body, fields)


def _has_entry(fields: Mapping[str, Any]) -> bool:
    """Whether this is an answer of /v1/embeddings with a vector."""
    entries = fields.get("data")
    first = entries[0] if isinstance(entries, list) and entries else None
    return isinstance(first, dict) and "embedding" in first


def _relayed(node: str, body: bytes, fields: Mapping[str, Any]) -> Relayed:
    usage = fields.get("usage")  # where OpenAI's endpoints report tokens
    tokens = counted(usage if isinstance(usage, dict) else fields)
    return Relayed(node, without_mark(body), (), tokens, read_timings(fields))


def _are_ordinary(lines: bytes, count: int) -> bool:
    """Whether none of `count` lines can be the last one or an error, as most of Ollama's are not.

    False means unknown. A string that begins like this after a comma is a key, and before the last
    bracket of the line it is a key of the outermost object. Only escapes could spell the key in
    another way, and Ollama writes those for some characters of a text.
    """
    is_known = lines.endswith(_NOT_LAST) if count == 1 else lines.count(_NOT_LAST) == count
    return (
        is_known and b'"error"' not in lines and (_BACKSLASH not in lines or b"\\u00" not in lines)
    )


def _read(line: bytes) -> Mapping[str, Any]:
    """The JSON object in `line`; empty if it is not one."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _NOTHING
    return fields if isinstance(fields, dict) else _NOTHING


class RelayStream(ReplyStream[Any]):
    """A streamed answer whose parts are the bytes of one or several whole lines, as they arrive.

    Lines that are not JSON are passed on too. The iteration raises NodeError if the stream breaks
    off, and instead of an error line of the node. Data after the last line is dropped.

    setbacks: attempts before it that failed or were late.
    """

    setbacks: Sequence[Setback] = ()

    def __init__(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        on_end: OnEnd[Any],
    ) -> None:
        super().__init__(node, response, read_talk, on_end)
        self._is_done = False
        self._next = b""  # lines that arrived and are not yet returned
        self._rest = b""  # the start of an incomplete line

    def __repr__(self) -> str:
        return f"<RelayStream from {self.node}, {self.parts} lines>"

    def _take_first(self) -> None:
        self._ready[0] = self._load(self.node, self._ready[0]).body
        self._next = b"".join([line + b"\n" for line in self._ready])
        self._rest = self._lines.pending()
        self._ready.clear()

    async def __anext__(self) -> bytes:
        self._begin_reading()
        try:
            if self._is_done:
                await self._see_the_end()
                lines = b""
            else:
                lines = self._look_at(await self._whole_lines())
        except BaseException as error:
            await self._break_off(error)
            raise
        finally:
            self.is_waiting = False
        if not lines:
            await self._end(None)
            raise StopAsyncIteration
        return lines

    async def _end(self, error: BaseException | None) -> None:
        # A stream that is closed after its last line was complete.
        given_up = isinstance(error, GeneratorExit)
        await super()._end(None if given_up and self._is_done else error)

    async def _whole_lines(self) -> bytes:
        """The next whole lines. Raises NodeError at the end, as the last line is missing then."""
        if self._next:
            lines, self._next = self._next, b""
            return lines
        assert self._pieces is not None
        while True:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                rest, self._rest = self._rest, b""
                if _read(rest):
                    return rest + b"\n"  # a last line need not end with a line end
                raise cut_off(self.node, self.parts) from None
            if self._rest:
                piece, self._rest = self._rest + piece, b""
            if piece.endswith(b"\n"):
                return piece
            end = piece.rfind(b"\n") + 1
            self._rest = piece[end:]
            if end:
                return piece[:end]
            if len(piece) > _MAX_LINE:
                raise ProtocolError(self.node, f"sent a line of more than {_MAX_LINE} bytes")

    def _look_at(self, lines: bytes) -> bytes:
        """The part of `lines` to return now. Raises NodeError if they begin with an error."""
        count = lines.count(b"\n")
        if _are_ordinary(lines, count):
            self.parts += count
            return lines
        start, size = 0, len(lines)
        while start < size:
            end = lines.find(b"\n", start) + 1
            fields = _read(lines[start:end])
            if "error" in fields:
                if start:
                    self._next = lines[start:]  # raised at the next read, after the lines before it
                    return lines[:start]
                load_part(self.node, lines[:end])
            if fields.get("done") is True:
                self._is_done = True
                self.tokens = counted(fields)
                self.timings = read_timings(fields)
                self.parts += 1
                return lines[:end]
            self.parts += bool(fields)
            start = end
        return lines

    async def _see_the_end(self) -> None:
        """Read to the end of the stream, so that its connection can be reused."""
        assert self._pieces is not None
        with anyio.move_on_after(_END_SECONDS):
            try:
                async for _ in self._pieces:
                    pass
            except NodeError:
                pass  # the answer is complete
