"""Answers on their way to the client: whole, or as a stream that is ended properly.

`VectorWriter` makes text of vectors while the nodes still compute others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol

from aiohttp import web

from aiosollol.errors import SollolError
from aiosollol.gateway.middleware.error_responses import message_of
from aiosollol.wire.ollama.server_responses import Floats, HttpResponse

Write = Callable[[Floats, int], list[bytes]]
"""`answers.json_vectors` or `answers.base64_vectors`."""

_ROWS = 64  # vectors that are written before others get their turn
NODE, REASON = "X-Sollol-Node", "X-Sollol-Reason"
REQUEST_ID = "X-Request-ID"


class RequestState:
    """What is known of a request while it is served.

    id: that of its X-Request-ID. unique: letters and digits that no other request has. model: as
    the client wrote it. node: who answers. has_begun: whether some of the answer is sent already.
    problem: the kind of error that ended the answer after that, "" if none did.
    """

    __slots__ = ("has_begun", "id", "model", "node", "problem", "unique")

    def __init__(self, id: str, unique: str) -> None:
        self.id = id
        self.unique = unique
        self.has_begun = False
        self.model = ""
        self.node = ""
        self.problem = ""


STATE = web.RequestKey("aiosollol", RequestState)
"""Where handlers find the `RequestState` of a request."""


class Stream(Protocol):
    """Bytes from a node."""

    node: str

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


def whole(answer: HttpResponse, headers: Mapping[str, str] | None = None) -> web.Response:
    """`answer` as a response."""
    return web.Response(
        status=answer.status,
        body=answer.body,
        headers={"Content-Type": answer.content_type, **(headers or {})},
    )


def routed(request: web.Request, node: str, reason: str) -> dict[str, str]:
    """The headers that tell who answered and why."""
    state = request[STATE]
    state.node = node
    return {NODE: plain(node), REASON: reason, REQUEST_ID: state.id}


async def begin(request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
    """The beginning of an answer that comes bit by bit; a status cannot be told after it."""
    response = web.StreamResponse(headers=headers)
    request[STATE].has_begun = True
    await response.prepare(request)
    return response


def plain(text: str) -> str:
    """`text` as a header can have it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)


async def stream(
    request: web.Request,
    source: Stream,
    content_type: str,
    headers: Mapping[str, str],
    *,
    on_error: Callable[[str], bytes],
    convert: Callable[[bytes], bytes] | None = None,
    finish: Callable[[], bytes] | None = None,
) -> web.StreamResponse:
    """Pass `source` on as it comes.

    on_error: the bytes that tell the client of an error. convert: what the client gets for each
    piece, finish: at the end; what converts nothing is passed on as it is.
    """
    try:
        response = await begin(request, {"Content-Type": content_type, **headers})
        write = response.write
        try:
            if convert is None:
                async for piece in source:
                    await write(piece)
            else:
                async for piece in source:
                    if converted := convert(piece):
                        await write(converted)
                if finish is not None and (last := finish()):
                    await write(last)
        except SollolError as error:
            request[STATE].problem = type(error).__name__
            if last := on_error(message_of(error)):
                await write(last)
        await response.write_eof()
    finally:  # also when the client is gone: that cancels what it had asked for
        with suppress(SollolError):
            await source.aclose()
    return response


class VectorWriter:
    """Writes the vectors of one batch, a few in each turn of the event loop.

    A thousand vectors of 768 numbers take 25 ms, which a client would wait for at the end.
    Leaving it ends the work.
    """

    def __init__(self, count: int, write: Write) -> None:
        self._json = [b""] * count
        self._write = write
        self._pending: deque[tuple[Sequence[int], memoryview[float]]] = deque()
        self._turn: asyncio.Handle | None = None

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pending.clear()
        self._stop()

    def add(self, rows: Sequence[int], vectors: memoryview[float]) -> None:
        """For `OllamaPool.embed_batch` to call."""
        self._pending.append((rows, vectors))
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    async def finish(self) -> list[bytes]:
        """All vectors, in order."""
        self._stop()
        while self._pending:
            self._write_some()
            await asyncio.sleep(0)
        return self._json

    def _take_turn(self) -> None:
        self._turn = None
        self._write_some()
        if self._pending:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _write_some(self) -> None:
        rows, vectors = self._pending.popleft()
        if len(rows) > _ROWS:
            self._pending.appendleft((rows[_ROWS:], vectors[_ROWS:]))
            rows, vectors = rows[:_ROWS], vectors[:_ROWS]
        assert vectors.shape is not None
        texts = self._write(vectors.cast("B"), vectors.shape[1])
        for row, text in zip(rows, texts, strict=True):
            self._json[row] = text

    def _stop(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
