"""What nodes answer to others' requests, passed on as the bytes that they are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import anyio
import orjson

from aiosollol.core.explain import Setback
from aiosollol.errors import NodeError, ProtocolError
from aiosollol.exchange import EmbedCall, TalkCall
from aiosollol.streams import OnEnd, ReplyStream, counted
from aiosollol.wire.chat import cut_off, load_part
from aiosollol.wire.ollama import shown

_DONE, _ERROR = b'"done":true', b'{"error"'
_END_SECONDS = 1.0
"""How long a node may take to end a stream after its last line: then its connection is kept."""
_MAX_LINE = 1 << 26  # what never ends a line must not fill the memory
# Servers count at the end of an answer. In the text before it, these quotes would be escaped.
_COUNTS = re.compile(rb'"(?:prompt_eval_count|eval_count|prompt_tokens)": ?([0-9]{1,9})\b')
_COUNTED_BYTES = 256


class Relayed(NamedTuple):
    """A whole answer. node: who gave it, by name. setbacks: what came before it."""

    node: str
    body: bytes
    setbacks: Sequence[Setback] = ()


class RelayCall(TalkCall[Any]):
    """A request whose answer is not read. kind: "embed", "chat", "generate" or "load"."""

    __slots__ = ()

    def stream(
        self,
        node: str,
        response: AbstractAsyncContextManager[AsyncIterator[bytes]],
        on_end: OnEnd[Any],
    ) -> RelayStream:
        """Its answer, where that is streamed. The arguments are those of `RelayStream`."""
        return RelayStream(node, response, on_end)

    def tokens_of(self, part: Relayed) -> int:
        """Tokens of prompt and answer, as the server counted them; 0 where it does not say."""
        return sum(map(int, _COUNTS.findall(part.body[-_COUNTED_BYTES:])))

    def load_request(self) -> tuple[str, bytes]:
        """Path and body of a request that loads the model for this one and computes nothing."""
        if "embed" not in self.path:
            return TalkCall.load_request(self)
        call = EmbedCall(self.model, (), b"", False, 0.0, loading=self.loading)
        return call.load_request()


def read_talk(node: str, body: bytes) -> Relayed:
    """A whole answer of chat or generate. Raises NodeError if it cannot be one."""
    # Where the text of an answer has this, its quotes are escaped: to find it is nearly to read it.
    # It stands near the end.
    if not (body.startswith(b"{") and body.endswith((b"}", b"}\n")) and body.rfind(_DONE) >= 0):
        load_part(node, body)
    return Relayed(node, body)


def read_vector(node: str, body: bytes) -> Relayed:
    """An answer with one vector, of any embedding endpoint. Raises NodeError if it is none.

    In JSON numbers or in base64; what an endpoint answers to no text has none and is sound too.
    """
    start = body.find(b'"embedding')
    if not (body.startswith(b"{") and body.endswith((b"}", b"}\n"))) or start < 0:
        load_part(node, body)
        raise ProtocolError(node, f"answered {shown(body)}, which has no embeddings")
    return Relayed(node, body)


def read_vectors_of_one(node: str, body: bytes) -> Relayed:
    """An answer of /api/embed to one text. Raises NodeError if there is not one vector in it."""
    relayed = read_vector(node, body)
    # "[[" and then no other bracket is one vector; all else is worth reading. Single characters are
    # found at once, where a search of 10 kB of numbers for several took 11 us.
    first = body.find(b"[")
    is_one = (
        body.startswith(b"[[", first)
        and not body.startswith(b"[[]", first)
        and body.find(b"[", first + 2) < 0
    )
    if not is_one and not _has_one_vector(load_part(node, body)):
        raise ProtocolError(node, f"answered {shown(body)}, which is not the vector of one text")
    return relayed


def _has_one_vector(answer: dict[str, Any]) -> bool:
    vectors = answer.get("embeddings")
    return isinstance(vectors, list) and len(vectors) == 1 and bool(vectors[0])


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


class RelayStream(ReplyStream[Any]):
    """A streamed answer whose parts are bytes of one or several whole lines, as they come.

    Only the last line is read. The iteration raises NodeError if the stream breaks off, and at an
    error that the node reports, which is not given out then. setbacks: what came before it.
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
        self._next = b""  # lines that are there, and have yet to be given out
        self._rest = b""  # what came of a line that is not whole yet

    def __repr__(self) -> str:
        return f"<RelayStream from {self.node}, {self.parts} lines>"

    def _take_first(self) -> None:
        self._load(self.node, self._ready[0])
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
        self.parts += lines.count(b"\n")
        return lines

    async def _end(self, error: BaseException | None) -> None:
        # One that is left after its last line was answered.
        given_up = isinstance(error, GeneratorExit)
        await super()._end(None if given_up and self._is_done else error)

    async def _whole_lines(self) -> bytes:
        """The next whole lines. Raises NodeError at the end, since the last line was not there."""
        if self._next:
            lines, self._next = self._next, b""
            return lines
        assert self._pieces is not None
        while True:
            try:
                piece = await anext(self._pieces)
            except StopAsyncIteration:
                rest, self._rest = self._rest, b""
                if _is_json(rest):
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
        """What of `lines` to give out now. Raises NodeError if they begin with an error."""
        # Read are only lines that may be the last, and the first, which tells whether it is Ollama.
        if _DONE not in lines and _ERROR not in lines and self.parts:
            return lines
        start = lines.rstrip().rfind(b"\n") + 1
        try:
            fields = load_part(self.node, lines[start:])
        except NodeError:
            if not start:
                raise
            self._next = lines[start:]  # it is raised when what came before was taken
            return lines[:start]
        self._is_done = fields.get("done") is True
        self.tokens = counted(fields)
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
