"""Bodies of requests and responses: large ones don't hold up other requests.

A response is whole, or a stream that also ends properly on an error.

`VectorWriter` serializes vectors while the nodes still compute others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Protocol, TypeVar

from aiohttp import web

from aiosollol.errors import SollolError
from aiosollol.gateway.middleware.error_responses import message_of
from aiosollol.wire.ollama.server_responses import Floats, HttpResponse

Write = Callable[[Floats, int], list[bytes]]
"""`server_responses.json_vectors` or `server_responses.base64_vectors`."""

_ROWS = 64  # vectors written in one turn of the event loop
NODE, REASON = "X-Sollol-Node", "X-Sollol-Reason"
REQUEST_ID = "X-Request-ID"


class RequestState:
    """The state of a request while it is served.

    id: its X-Request-ID.
    unique: letters and digits that no other request has.
    model: as the client wrote it.
    node: the node that answers.
    has_begun: whether part of the response is sent already.
    problem: the type of the error that ended the response after that, "" if none did.
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
"""The key of a request's `RequestState`."""


class Stream(Protocol):
    """A streamed response from a node."""

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
    """The headers that name the node that answered, and why it was chosen."""
    state = request[STATE]
    state.node = node
    return {NODE: plain(node), REASON: reason, REQUEST_ID: state.id}


async def begin(request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
    """Start a streamed response. The status cannot change after this."""
    response = web.StreamResponse(headers=headers)
    request[STATE].has_begun = True
    await response.prepare(request)
    return response


def plain(text: str) -> str:
    """`text` with "?" for every character that a header cannot contain."""
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
    """Stream `source` to the client as it arrives.

    on_error: the bytes to send for an error message.
    convert: the bytes to send for each piece; None sends the pieces as they are.
    finish: the bytes to send at the end.
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
    finally:  # also if the client has left: this cancels its request on the node
        with suppress(SollolError):
            await source.aclose()
    return response


class VectorWriter:
    """Serializes the vectors of one batch, a few in each turn of the event loop.

    A thousand vectors of 768 numbers take 25 ms, which would delay the client at the end. Leaving
    the context drops the vectors not yet written.

    take: called with the bytes of some vectors and those before them; may raise a SollolError,
        which `finish` raises.
    size: bytes that `take` has admitted.
    """

    def __init__(
        self, count: int, write: Write, take: Callable[[int, int], None] = lambda size, own: None
    ) -> None:
        self._json = [b""] * count
        self._write = write
        self._take = take
        self._problem: SollolError | None = None
        self.size = 0
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
        """Add vectors: the `on_vectors` of `OllamaPool.embed_batch`."""
        if self._problem is not None:
            return
        self._pending.append((rows, vectors))
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    async def finish(self) -> list[bytes]:
        """All vectors, in order."""
        self._stop()
        while self._pending:
            self._write_some()
            await asyncio.sleep(0)
        if self._problem is not None:
            raise self._problem
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
        size = sum(map(len, texts))
        try:
            self._take(size, self.size)
        except SollolError as error:
            self._problem = error
            self._pending.clear()
            self._json.clear()
            return
        self.size += size
        for row, text in zip(rows, texts, strict=True):
            self._json[row] = text

    def _stop(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None


IN_LOOP = 64 << 10
"""Largest body, in bytes, parsed in the event loop. It takes 0.1 ms, and 50 ms at worst."""
LARGE = 1 << 20
"""Bytes from which a body is parsed after other large ones. Parsing one may take seconds."""

T = TypeVar("T")


class _BodyThreads:
    """Two threads: one for large bodies, and one for the others, which don't wait for those.

    More would not be faster, as only one runs at a time, and the event loop would wait for each.
    """

    def __init__(self) -> None:
        self._medium = ThreadPoolExecutor(1, thread_name_prefix="aiosollol-bodies")
        self._large = ThreadPoolExecutor(1, thread_name_prefix="aiosollol-large-bodies")

    def choose(self, size: int) -> ThreadPoolExecutor:
        return self._medium if size < LARGE else self._large

    def stop(self) -> None:
        for worker in (self._medium, self._large):
            worker.shutdown(wait=False, cancel_futures=True)


_WORKERS = web.AppKey("aiosollol_bodies", _BodyThreads)


def add_workers(app: web.Application) -> None:
    """Give an application the threads in which `parse` parses bodies."""
    workers = app[_WORKERS] = _BodyThreads()

    async def stop(app: web.Application) -> None:
        workers.stop()

    app.on_cleanup.append(stop)


async def parse(request: web.Request, read: Callable[[bytes], T]) -> T:
    """The result of `read` for the body of a request, in a thread unless the body is small.

    Python switches threads every 5 ms, but not during a call into C: those must be short, however
    large the body (see `wire.json_slices`).
    """
    body = await request.read()
    if len(body) <= IN_LOOP or (workers := request.app.get(_WORKERS)) is None:
        return read(body)
    return await asyncio.get_running_loop().run_in_executor(workers.choose(len(body)), read, body)
