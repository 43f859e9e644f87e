"""Servers on loopback for connection tests, and requests to them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiosollol.core.address import Address
from aiosollol.net.connection import ConnectionPool
from aiosollol.net.connector import Connector
from aiosollol.net.http_exchange import HttpExchange

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
FOREVER = float("inf")


class Served:
    """A server on loopback. connections: number so far. open: number now."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.open = 0
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self.open += 1
        try:
            await self._handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self.open -= 1
            writer.close()

    async def end(self) -> None:
        await turns()  # for connections accepted just now
        for task in self._tasks:
            task.cancel()
        await until(lambda: not self._tasks)
        for writer in self._writers:
            writer.transport.abort()
        await turns()


@asynccontextmanager
async def served(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    serving = Served(handle)
    server = await asyncio.start_server(serving, "127.0.0.1", 0, ssl=tls, backlog=1024)
    serving.port = server.sockets[0].getsockname()[1]
    try:
        yield serving
    finally:
        server.close()
        await serving.end()


@asynccontextmanager
async def connections_to(
    port: int, *, scheme: str = "http", host: str = "127.0.0.1", fingerprint: str | None = None
) -> AsyncIterator[ConnectionPool]:
    connections = ConnectionPool(Connector(Address(scheme, host, port), fingerprint))
    try:
        yield connections
    finally:
        await connections.aclose()
        assert "0 open, 0 idle" in repr(connections)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def over(begun: HttpExchange) -> HttpExchange:
    while not begun.is_over:
        await begun.changed()
    return begun


async def asked(connections: ConnectionPool, request: bytes = HEAD) -> HttpExchange:
    """Run one exchange to its end."""
    connection = connections.take() or await connections.make(5)
    begun = connection.begin(FOREVER)
    connection.send(request)
    return await over(begun)


def http(body: bytes, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (fields, len(body), body)


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with {}."""
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"{}"))


class Names:
    """A fake DNS. hosts: addresses of each name. asked: number of queries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.hosts: dict[str, list[str]] = {}

        async def getaddrinfo(host: str, port: int, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return self.look_up(host)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    def look_up(self, name: str) -> list[Any]:
        self.asked += 1
        if name not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, 1, 6, "", (host, 0))
            for host in self.hosts[name]
        ]
