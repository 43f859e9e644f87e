"""An application served by a `Listener`, with raw connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.serving.connections import ConnectionLimits
from aiosollol.gateway.serving.listener import Listener

DEADLINE = 60.0  # a hang fails; nothing is measured
MIB = 1 << 20


class Server:
    """An application with endpoints that wait, stream, and send a large body."""

    def __init__(self, limits: ConnectionLimits | None = None, guard: Guard | None = None) -> None:
        self.release = asyncio.Event()
        self.started = asyncio.Queue[str]()
        self.cancelled = 0
        app = web.Application(
            middlewares=[guard.middleware()] if guard else [], client_max_size=64 * MIB
        )
        app.router.add_get("/", self.quick)
        app.router.add_post("/", self.quick)
        app.router.add_get("/slow", self.slow)
        app.router.add_get("/stream", self.stream)
        app.router.add_get("/much", self.much)
        self.listener = Listener(app, limits)

    async def quick(self, request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def slow(self, request: web.Request) -> web.Response:
        self.started.put_nowait("slow")
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.Response(text="done")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first ")
        self.started.put_nowait("stream")
        await self.release.wait()
        await response.write(b"last")
        return response

    async def much(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 65536
        )  # by default the system buffers 4 MB
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                await response.write(bytes(64 << 10))
        return response

    @property
    def address(self) -> tuple[str, int]:
        return self.listener.address


@asynccontextmanager
async def serving(
    limits: ConnectionLimits | None = None, guard: Guard | None = None
) -> AsyncIterator[Server]:
    server = Server(limits, guard)
    await server.listener.start("127.0.0.1", 0)
    try:
        async with asyncio.timeout(DEADLINE):
            yield server
    finally:
        server.release.set()
        await server.listener.stop(0.0)


async def get(server: Server, path: str = "/") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(server.listener.url + path) as got:
        return got.status, await got.text()
