"""Connections that are kept and reused, by asyncio's loop and by uvloop."""

from __future__ import annotations

import asyncio

import pytest
from connection_servers import (
    FOREVER,
    HEAD,
    asked,
    connections_to,
    http,
    over,
    polite,
    served,
    until,
)

from aiosollol.net import connection as pooling

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_a_connection_is_used_again() -> None:
    async with served(polite) as server, connections_to(server.port) as connections:
        for _ in range(5):
            assert (await asked(connections)).read() == b"{}"
        assert server.connections == 1
        assert "1 open, 1 idle" in repr(connections)
    await until(lambda: not server.open)


async def test_the_one_that_was_used_last_is_used_first() -> None:
    async with served(polite) as server, connections_to(server.port) as connections:
        first, second = await connections.make(5), await connections.make(5)
        for connection in (second, first):
            begun = connection.begin(FOREVER)
            connection.send(HEAD)
            await over(begun)
        assert "idle" in repr(first)
        assert connections.take() is first
        assert connections.take() is second
        assert connections.take() is None


async def test_one_that_the_server_closes_is_dropped_at_once() -> None:
    close = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"{}"))
        await close.wait()

    async with served(handle) as server, connections_to(server.port) as connections:
        await asked(connections)
        assert "1 open, 1 idle" in repr(connections)
        close.set()
        await until(lambda: "0 open, 0 idle" in repr(connections))


async def test_one_that_speaks_unasked_is_dropped_at_once() -> None:
    speak = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"{}"))
        await speak.wait()
        writer.write(http(b"poison"))
        await reader.read()

    async with served(handle) as server, connections_to(server.port) as connections:
        await asked(connections)
        speak.set()
        await until(lambda: "0 open, 0 idle" in repr(connections))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(http(b"{}") + http(b"poison"), id="another answer behind it"),
        pytest.param(http(b"{}") + b"\r\n", id="a line end behind it"),
        pytest.param(http(b"{}", b"Connection: close\r\n"), id="close"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", id="HTTP/1.0"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n0\r\n\r\n",
            id="chunks behind the last",
        ),
    ],
)
async def test_one_that_must_not_be_used_again_is_not(answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()

    async with served(handle) as server, connections_to(server.port) as connections:
        assert (await asked(connections)).read() == b"{}"
        assert connections.take() is None
        assert (await asked(connections)).read() == b"{}"
        assert server.connections == 2
        await until(lambda: not server.open)


async def test_idle_ones_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(polite) as server, connections_to(server.port) as connections:
        used = [await connections.make(5) for _ in range(3)]
        for connection in used:
            begun = connection.begin(FOREVER)
            connection.send(HEAD)
            await over(begun)
        connections._sweep()
        assert "3 open, 3 idle" in repr(connections), "their time has not come"
        used[0].idle_since = used[1].idle_since = -pooling.KEEP_SECONDS
        connections._sweep()
        assert "1 idle" in repr(connections)
        await until(lambda: server.open == 1)
        assert connections._sweep_timer is not None
        monkeypatch.setattr(pooling, "KEEP_SECONDS", 0.0)
        connections._sweep()
        assert connections._sweep_timer is None
        await until(lambda: not server.open)


async def test_a_connection_that_was_lost_before_it_was_used_fails_the_exchange() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        return

    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        await until(lambda: "closed" in repr(connection))
        begun = connection.begin(FOREVER)
        connection.send(HEAD)
        await connection.send_large(HEAD, b"")
        assert begun.is_over
        assert isinstance(begun.error, ConnectionError)
        assert not begun.was_in_vain, "it never answered, so another would not either"
