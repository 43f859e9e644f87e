"""`BodyReader`: reads one request's body within the limits, and counts what of it is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from aiosollol.errors import SollolError
from aiosollol.gateway.middleware.body_memory import BodyMemory
from aiosollol.gateway.middleware.limits import Limits
from aiosollol.gateway.request_content import decode
from aiosollol.wire.ollama.server_requests import Refusal

_BYTES_PER_SECOND = 4096
_STEP = 1 << 20  # by which a body of unknown length is counted


class BodyRefused(SollolError):
    """A body over a limit; it ends the connection, as the rest of the body is not read.

    retry_after: None if a retry would not help.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class BodyReader:
    """One request's body: `read` it, and `release` its memory when the request has ended.

    client: whose share of the memory it counts for.
    """

    __slots__ = ("_client", "_large", "_limits", "_memory", "_small")

    def __init__(self, memory: BodyMemory, limits: Limits, client: str) -> None:
        self._memory = memory
        self._client = client
        self._limits = limits
        self._small = self._large = 0

    async def read(self, request: web.Request) -> None:
        """Read and decode the body; the request keeps it for its endpoint.

        A body with a Content-Length waits for room; so does the first MiB of another. Raises
        BodyRefused, and Refusal for an encoding that is not accepted.
        """
        content = request.content
        if content.is_eof():  # it came with the head, and is in memory in any case
            size = content.total_bytes
            if size > self._limits.max_body:
                raise self._too_large()
            if self._memory.take_small(self._client, size, self._limits.max_bodies):
                self._small = size
            else:
                await self._admit(size, self._memory.wait_in_memory)
        else:
            await self._read_large(request)
        if hdrs.CONTENT_ENCODING in request.headers:
            try:
                await decode(request, self._limits.max_body, self._grow)
            except Refusal as error:
                if error.status == 413:
                    raise self._too_large() from error
                raise

    def release(self) -> None:
        """The body is not needed any more."""
        most = self._limits.max_bodies
        if self._small:
            self._memory.release_small(self._client, self._small, most)
        if self._large:
            self._memory.release(self._client, self._large, most)
        self._small = self._large = 0

    async def _read_large(self, request: web.Request) -> None:
        limits = self._limits
        length = request.content_length
        if length is not None and length > limits.max_body:
            raise self._too_large()
        size = min(_STEP, limits.max_body) if length is None else length
        await self._admit(size, self._memory.wait)
        seconds = limits.body_timeout + (length or limits.max_body) / _BYTES_PER_SECOND
        try:
            async with asyncio.timeout(limits.body_timeout) as deadline:
                watch = _Watch(request, deadline, limits.body_timeout, seconds)
                try:
                    request._read_bytes = await self._collect(request)
                finally:
                    watch.stop()
        except TimeoutError:
            raise BodyRefused(408, "the body came too slowly") from None

    async def _admit(
        self, size: int, wait: Callable[[str, int, int, float], Awaitable[bool]]
    ) -> None:
        limits = self._limits
        if not await wait(self._client, size, limits.max_bodies, limits.wait_timeout):
            raise self._no_room()
        self._large = size

    async def _collect(self, request: web.Request) -> bytes:
        content, pieces, size = request.content, [], 0

        while piece := await content.readany():
            size += len(piece)
            if size > self._limits.max_body:
                raise self._too_large()
            while size > self._large:
                self._grow(min(_STEP, max(1, self._limits.max_body - self._large)))
            pieces.append(piece)
        if size < _STEP:
            return b"".join(pieces)
        return await asyncio.to_thread(b"".join, pieces)  # which lets other threads run

    def _grow(self, size: int) -> None:
        """Count `size` more bytes, which are there now. Nothing waits here: all might wait."""
        most = self._limits.max_bodies
        if not self._memory.grow(self._client, size, self._small, self._large, most):
            raise self._no_room()
        self._large += size

    def _too_large(self) -> BodyRefused:
        most = self._limits.max_body
        return BodyRefused(413, f"the request is larger than {most:,} bytes (max_body, --max-body)")

    def _no_room(self) -> BodyRefused:
        message = (
            "too many large requests at once: their bodies are over "
            f"max_bodies={self._limits.max_bodies:,} bytes, or half of it for one client "
            "(--max-bodies); try again later"
        )
        return BodyRefused(503, message, retry_after=1.0)


class _Watch:
    """Extends the deadline of a body as it arrives: 1 s for each 4 kB, up to `most` seconds."""

    def __init__(
        self, request: web.Request, deadline: asyncio.Timeout, least: float, most: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._content = request.content
        self._deadline = deadline
        self._began = self._loop.time()
        self._least, self._most = least, most
        self._timer = self._loop.call_later(least / 2, self._look)

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._deadline.expired():
            return
        earned = self._least + self._content.total_bytes / _BYTES_PER_SECOND
        self._deadline.reschedule(self._began + min(self._most, earned))
        self._timer = self._loop.call_later(self._least / 2, self._look)
