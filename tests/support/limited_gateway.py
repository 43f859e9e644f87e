"""A gateway with limits, for tests of what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from aiosollol.gateway.middleware.guard import KEY, Guard
from aiosollol.gateway.middleware.keys import KeyRing, new_key, parse_keys
from aiosollol.gateway.serving.listener import Listener


class Gateway:
    """An application that echoes, behind a guard. release: lets ``/api/slow`` answer."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.release = asyncio.Event()
        self.waiting = asyncio.Event()
        self.running = self.most = 0
        self.app = web.Application(middlewares=[guard.middleware()], client_max_size=1 << 20)
        self.app.router.add_route("*", "/api/slow", self.slow)
        self.app.router.add_route("*", "/{path:.*}", self.echo)
        self.app.on_response_prepare.append(guard.origins.tell)
        self.url = ""

    async def echo(self, request: web.Request) -> web.Response:
        key = request.get(KEY)
        return web.json_response(
            {"key": key and key.name, "bytes": len(await request.read()), "path": request.path}
        )

    async def slow(self, request: web.Request) -> web.Response:
        self.waiting.set()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        return web.Response()


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Gateway, aiohttp.ClientSession]]:
    keys = options.pop("keys", None)
    limits = options.pop("limits", None)
    gateway = Gateway(Guard(keys, limits, **options))
    listener = Listener(gateway.app)
    await listener.start("127.0.0.1", 0)
    gateway.url = listener.url
    try:
        async with aiohttp.ClientSession(listener.url) as session:
            yield gateway, session
    finally:
        gateway.release.set()
        await listener.stop(5.0)


def ring(*lines: str) -> tuple[KeyRing, list[str]]:
    made = [new_key(*line.partition(" ")[::2]) for line in lines]
    return KeyRing(parse_keys("\n".join(key.line for key in made), "f")), [k.token for k in made]
