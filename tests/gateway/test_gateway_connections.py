"""The connections of a listener: clients that are slow, idle, or too many."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
from listener_server import MIB, get, serving

from aiosollol import InvalidInput
from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.limits import Limits
from aiosollol.gateway.serving.connections import ConnectionLimits

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, scope="module")
def many_files() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_byte_now_and_then_is_cut_off() -> None:
    limits = ConnectionLimits(header_timeout=0.2)
    async with serving(limits) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        answer = asyncio.create_task(reader.read())
        head = iter(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        while not answer.done():
            writer.write(bytes([next(head)]))
            await asyncio.wait([answer], timeout=0.02)
        # A byte that was on its way when the connection was closed makes the system reset it.
        with contextlib.suppress(ConnectionResetError):
            assert answer.result().startswith(b"HTTP/1.1 408 ")
        writer.close()
        assert server.listener.gate.late == 1
        assert await get(server) == (200, "0")


async def test_a_kept_connection_may_be_slow_once_only() -> None:
    """The deadline is for each head, and holds on a connection that has done well before."""
    limits = ConnectionLimits(header_timeout=0.2)
    async with serving(limits) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nHo")
            await writer.drain()
            writer.write(b"st: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n0")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET / HT")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_who_says_nothing_is_let_go() -> None:
    async with serving(ConnectionLimits(idle_timeout=0.1)) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        assert await reader.read() == b""
        writer.close()


async def test_a_thousand_idle_connections_keep_no_client_out() -> None:
    async with serving() as server:
        before = memory()
        held = [await asyncio.open_connection(*server.address) for _ in range(1000)]
        for reader, writer in held:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n0")
        assert await get(server) == (200, "0")
        assert server.listener.gate.open >= 1000
        assert memory() - before < 100 * MIB
        for _, writer in held:
            writer.close()


async def test_too_many_connections_are_told_so() -> None:
    async with serving(ConnectionLimits(max_connections=2, full_timeout=0.05)) as server:
        held = [await asyncio.open_connection(*server.address) for _ in range(2)]
        while server.listener.gate.open < 2:
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(*server.address)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        assert server.listener.gate.refused == 1
        held[0][1].close()
        while server.listener.gate.open == 2:
            await asyncio.sleep(0)
        assert await get(server) == (200, "0")
        held[1][1].close()


async def test_slow_readers_take_little_memory_and_are_cut_off() -> None:
    limits = ConnectionLimits(write_timeout=1.0)
    async with serving(limits) as server:
        before = memory()
        held = []
        for _ in range(200):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, server.address)
            reader, writer = await asyncio.open_connection(sock=connection, limit=1024)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
            held.append(writer)
        assert await get(server) == (200, "0")
        while server.listener.gate.stalled < 200:
            await asyncio.sleep(0.01)
        # Each has 64 MiB to read; 128 KiB of it and a piece of 64 KiB may be held for it.
        assert memory() - before < 150 * MIB
        for writer in held:
            writer.transport.abort()


async def test_a_body_of_two_gigabytes_is_not_read() -> None:
    guard = Guard(limits=Limits(max_body=MIB))
    async with serving(guard=guard) as server:
        before = memory()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 2 << 30 and not reader._buffer:  # type: ignore[attr-defined]
                writer.write(bytes(MIB))
                sent += MIB
                await writer.drain()
                await asyncio.sleep(0)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        assert sent < 200 * MIB
        assert await get(server) == (200, "0")
        assert memory() - before < 100 * MIB
        writer.transport.abort()


async def test_a_million_headers_are_refused() -> None:
    async with serving() as server:
        before = memory()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                writer.write(b"X-A: b\r\n" * 1000)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        assert await get(server) == (200, "0")
        assert memory() - before < 100 * MIB
        writer.transport.abort()


def memory() -> int:
    """Bytes that this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_connections": 0},
        {"header_timeout": 0},
        {"idle_timeout": float("inf")},
        {"write_timeout": -1},
    ],
)
def test_limits_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        ConnectionLimits(**wrong)
