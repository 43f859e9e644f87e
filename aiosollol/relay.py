"""What nodes answer to others' requests, passed on as the bytes that they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import anyio
import orjson

from aiosollol.core.routing import RouteRequest
from aiosollol.errors import NodeError, ProtocolError, RunnerFailed
from aiosollol.exchange import EmbedCall, TalkCall
from aiosollol.streams import ReplyStream
from aiosollol.wire.chat import cut_off
from aiosollol.wire.ollama import error_for, error_message, shown

_DONE, _ERROR = b'"done":true', b'{"error"'
_END_SECONDS = 1.0
"""How long a node may take to end a stream after its last line: then its connection is kept."""
_MAX_LINE = 1 << 26  # what never ends a line must not fill the memory


class Relayed(NamedTuple):
    """A whole answer. node: who gave it, by name."""

    node: str
    body: bytes


@dataclass(slots=True)
class RelayCall(TalkCall[Any]):
    """A request whose answer is not read. kind: "embed", "chat", "generate" or "load"."""

    kind: str = "chat"

    def __post_init__(self) -> None:
        self.request = RouteRequest(self.model, self.tokens, kind=self.kind)

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this one and computes nothing."""
        if "embed" not in self.path:
            return TalkCall.load_request(self)
        call = EmbedCall(self.model, (), b"", False, 0.0, self.timeout, loading=self.loading)
        return call.load_request()


def read_talk(node: str, body: bytes) -> Relayed:
    """A whole answer of chat or generate. Raises NodeError if it cannot be one."""
    # Where the text of an answer has this, its quotes are escaped: to find it is nearly to read it.
    if not (body.startswith(b"{") and body.endswith((b"}", b"}\n")) and _DONE in body):
        _object(node, body)
    return Relayed(node, body)


def read_vector(node: str, body: bytes) -> Relayed:
    """An answer with one vector, of any embedding endpoint. Raises NodeError if it is none.

    In JSON numbers or in base64; what an endpoint answers to no text has none and is sound too.
    """
    start = body.find(b'"embedding')
    if not (body.startswith(b"{") and body.endswith((b"}", b"}\n"))) or start < 0:
        _object(node, body)
        raise ProtocolError(node, f"answered {shown(body)}, which has no embeddings")
    return Relayed(node, body)


def read_vectors_of_one(node: str, body: bytes) -> Relayed:
    """An answer of /api/embed to one text. Raises NodeError if there is not one vector in it."""
    relayed = read_vector(node, body)
    # Two brackets are one vector, unless a name has some: then it is worth reading.
    if (body.count(b"[") != 2 or b"[[]]" in body) and not _has_one_vector(_object(node, body)):
        raise ProtocolError(node, f"answered {shown(body)}, which is not the vector of one text")
    return relayed


def _has_one_vector(answer: dict[str, Any]) -> bool:
    vectors = answer.get("embeddings")
    return isinstance(vectors, list) and len(vectors) == 1 and bool(vectors[0])


def _object(node: str, body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is. Raises NodeError if it is none, or tells of an error."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(node, f"answered {shown(body)}, which is not JSON") from error
    if not isinstance(value, dict):
        raise ProtocolError(node, f"answered {shown(body)}, which is not a JSON object")
    if "error" in value:
        if error_message(body) is None:
            raise RunnerFailed(node, 200, body[:200].decode("utf-8", "replace"))
        raise error_for(node, 500, body)
    return value


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


class RelayStream:
    """A streamed answer as it comes: iterate over it once, and `aclose` it.

    What it gives is bytes of one or several whole lines; only the last line is read. The iteration
    raises NodeError if the stream breaks off, and at an error that the node reports, which is not
    given out then.

    node: the name of the node that answers.
    """

    def __init__(self, stream: ReplyStream[Any]) -> None:
        """Of a `stream` that is open, and of which nothing was taken. It keeps the accounts."""
        self.node = stream.node
        self._stream = stream
        self._is_done = False
        lines = [] if stream._first is None else [stream._first.body]
        lines += stream._ready
        stream._ready.clear()
        self._first = b"".join([line + b"\n" for line in lines])
        self._rest = b"".join(stream._lines._parts)
        self._pieces: AsyncIterator[bytes] | None = stream._pieces

    def __repr__(self) -> str:
        return f"<RelayStream from {self.node}, {self._stream.parts} lines>"

    def __aiter__(self) -> RelayStream:
        return self

    async def __anext__(self) -> bytes:
        stream = self._stream
        if stream._is_over:
            if stream._error is not None:
                raise stream._error
            raise StopAsyncIteration
        stream.is_waiting = True
        try:
            if self._is_done:
                await self._see_the_end()
                lines = b""
            else:
                lines = self._look_at(await self._lines())
        except NodeError as error:
            await stream._end(error)
            stream._error = stream._closing or stream._cut_off(error)
            if stream._error is error:
                raise
            raise stream._error from error
        except BaseException as error:
            await stream._end(error)
            raise
        finally:
            stream.is_waiting = False
        if not lines:
            await stream._end(None)
            raise StopAsyncIteration
        stream.parts += lines.count(b"\n")
        return lines

    async def aclose(self) -> None:
        """Stop. What the node is still working on is cancelled. Idempotent."""
        await self._stream._end(None if self._is_done else GeneratorExit())

    async def _lines(self) -> bytes:
        """The next whole lines. Raises NodeError at the end, since the last line was not there."""
        if self._first:
            first, self._first = self._first, b""
            return first
        assert self._pieces is not None
        while True:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                rest, self._rest = self._rest, b""
                if _is_json(rest):
                    return rest + b"\n"  # a last line need not end with a line end
                raise cut_off(self.node, self._stream.parts) from None
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
        """What of `lines` to give out now. Raises NodeError if they begin with an error."""
        # Read are only lines that may be the last, and the first, which tells whether it is Ollama.
        if _DONE not in lines and _ERROR not in lines and self._stream.parts:
            return lines
        start = lines.rstrip().rfind(b"\n") + 1
        try:
            self._is_done = _object(self.node, lines[start:]).get("done") is True
        except NodeError:
            if not start:
                raise
            self._first = lines[start:]  # it is raised when what came before was taken
            return lines[:start]
        return lines

    async def _see_the_end(self) -> None:
        """Let the node end the stream properly, so that its connection can be used again."""
        assert self._pieces is not None
        with anyio.move_on_after(_END_SECONDS):
            try:
                async for _ in self._pieces:
                    pass
            except NodeError:
                pass  # the answer is complete
