"""Connections: closed, given up, and cancelled anywhere."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

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
    turns,
    until,
)

from aiosollol.core.address import Address
from aiosollol.net import connector
from aiosollol.net.connection import Closed, ConnectionPool
from aiosollol.net.connector import Connector

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_closing_ends_what_is_under_way() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        begun = connection.begin(FOREVER)
        connection.send(HEAD)
        waiting = asyncio.ensure_future(over(begun))
        await until(lambda: server.open)
        await connections.aclose()
        await waiting
        assert isinstance(begun.error, ConnectionError)
        with pytest.raises(Closed):
            await connections.make(5)
        await connections.aclose()
        await until(lambda: not server.open)


async def test_closing_ends_dialling(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(connector.Connector, "dial", hang)
    connections = ConnectionPool(Connector(Address("http", "127.0.0.1", 1)))
    making = [asyncio.ensure_future(connections.make(60)) for _ in range(3)]
    await turns()
    await connections.aclose()
    for each in making:
        with pytest.raises(Closed):
            await each
    with pytest.raises(TimeoutError):
        await ConnectionPool(Connector(Address("http", "127.0.0.1", 1))).make(0.0)


async def test_closing_does_not_wait_for_what_the_server_will_not_read() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        writer.write(http(b"{}"))
        await gone.wait()

    gone = asyncio.Event()
    async with served(handle) as server, connections_to(server.port) as connections:
        assert (await asked(connections, HEAD + bytes(20_000_000))).read() == b"{}"
        async with asyncio.timeout(20):
            await connections.aclose()
        gone.set()


async def test_a_connection_that_is_made_while_all_is_closed_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Connector.dial

    async def made_too_late(self: Connector, factory: Any) -> Any:
        connection = await real(self, factory)
        connections._is_closed = True
        return connection

    monkeypatch.setattr(Connector, "dial", made_too_late)
    async with served(polite) as server, connections_to(server.port) as connections:
        with pytest.raises(Closed):
            await connections.make(5)
        await until(lambda: server.connections and not server.open)


@pytest.mark.parametrize("size", [0, 3_000_000])
async def test_whoever_is_cancelled_wherever_leaves_nothing_behind(size: int) -> None:
    body = bytes(size)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(size)
            writer.write(http(b"{}" * 1000))

    async def ask(connections: ConnectionPool) -> bytes:
        connection = connections.take() or await connections.make(5)
        begun = connection.begin(FOREVER)
        try:
            await connection.send_large(HEAD, body)
            return (await over(begun)).read()
        finally:
            begun.fail(ConnectionAbortedError())

    async with served(handle) as server, connections_to(server.port, host="localhost") as them:
        is_done, patience = False, 0
        while not is_done:
            task = asyncio.ensure_future(ask(them))
            await turns(patience)
            is_done = task.done()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                assert task.result() == b"{}" * 1000
            patience += 1
        assert patience > 3
        assert await ask(them) == b"{}" * 1000
        del task
        gc.collect()
        await until(lambda: server.open == 1)
