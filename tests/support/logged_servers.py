"""Every kind of server, raw requests to it, and the lines of its log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from aiosollol.gateway.serving.listener import Listener
from aiosollol.net.http_server import listening

SECRET = "hunter7xyzzy9"
KEY = SECRET.encode()
DEADLINE = 60.0  # a hang fails; nothing is measured
POST = b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
MALFORMED = [
    (POST + b"Authorization : Bearer " + KEY + b"\r\n\r\n", "malformed header"),
    (POST + b"x-api-key: " + KEY + b"\x01\r\n\r\n", "malformed header"),
    (POST + b"Authorization: Bearer " + KEY + b"\r\r\n\r\n", "malformed header"),
    (POST + b"x-api-key: " + KEY + b"\r x: y\r\n\r\n", "malformed header"),
    (POST + KEY + b"\r\n\r\n", "malformed header"),
    (POST + KEY + b"\xff: x\r\n\r\n", "malformed header"),
    (POST + b"Sec-WebSocket-Key1: " + KEY + b"\r\n\r\n", "malformed header"),
    (POST + b"x-api-key: " + KEY * 1000 + b"\r\n\r\n", "line too long"),
    (POST + KEY * 1000 + b": x\r\n\r\n", "line too long"),
    (b"GET /" + KEY * 1000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", "line too long"),
    (POST + b"x-api-key: " + KEY + b"\r\n" + b"A: b\r\n" * 200 + b"\r\n", "too many headers"),
    (b"GET /?key=" + KEY + b" HTTP/1.1\r\nx-api-key: " + KEY + b"\r\n\r\n", "Host header"),
    (POST + b"Host: " + KEY + b"\r\n\r\n", "Host header"),
    (b"GET " + KEY + b" HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET /\xff" + KEY + b" HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET http://u:" + KEY + b"@h:x/ HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET http://[" + KEY + b"/ HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"CONNECT u:" + KEY + b"@h:x HTTP/1.1\r\nHost: a\r\n\r\n", "malformed target"),
    (b"GET /" + KEY + b" HTTP/9.1\r\nHost: a\r\n\r\n", "malformed request line"),
    (b"GET /" + KEY + b" " + KEY + b"\r\nHost: a\r\n\r\n", "malformed request line"),
    (KEY + b" / HTTP/1.1\r\nHost: a\r\n\r\n", "malformed method, or not HTTP"),
    (b"\x16\x03\x01\x02\x00" + KEY, "malformed method, or not HTTP"),
    (POST + b"Content-Length: " + KEY + b"\r\n\r\n", "wrong Content-Length"),
    (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + KEY, "wrong Content-Length"),
    (POST + b"Transfer-Encoding: " + KEY + b"\r\n\r\n", "wrong Transfer-Encoding"),
    (CHUNKED + b"6\r\nmy secret " + KEY + b"\r\n0\r\n\r\n", "malformed chunk"),
    (CHUNKED + KEY + b"\r\n\r\n", "malformed chunk"),
    (POST + b"Content-Encoding: deflate\r\nContent-Length: 13\r\n\r\n" + KEY, "Content-Encoding"),
    (POST + b"Content-Encoding: gzip\r\nContent-Length: 13\r\n\r\n" + KEY, "Content-Encoding"),
]


class Served:
    """An application that reads the bodies of its requests, and its server's address."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.fails_with: Any = None
        self.app = web.Application()
        self.app.router.add_route("*", "/{rest:.*}", self.read)

    async def read(self, request: web.Request) -> Any:
        self.begun.set()
        if self.fails_with is not None:
            return self.fails_with()
        return web.Response(text=str(len(await request.read())))


@asynccontextmanager
async def by_listener(app: web.Application) -> AsyncIterator[tuple[str, int]]:
    listener = Listener(app)
    await listener.start("127.0.0.1", 0)
    try:
        yield listener.address
    finally:
        await listener.stop(0.0)


def by_listening(app: web.Application) -> AbstractAsyncContextManager[tuple[str, int]]:
    return listening(app, "127.0.0.1", 0, name="node", grace=0.1)


async def answer_to(address: tuple[str, int], *parts: bytes, then: Any = None) -> bytes:
    """Everything a server sends until it closes the connection. then: awaited after each part."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(*address)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                if then is not None:
                    await then()
            with contextlib.suppress(ConnectionResetError):
                return await reader.read()
        finally:
            writer.close()
    return b""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The logged lines, except asyncio's choice of a selector."""
    return [each.getMessage() for each in caplog.records if each.name != "asyncio"]
