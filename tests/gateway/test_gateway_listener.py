"""A listener that stops, its addresses, and the signals of its process."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from typing import Any

import aiohttp
import pytest
from listener_server import DEADLINE, Server, get, serving

from aiosollol import InvalidInput
from aiosollol.gateway.serving.listener import Listener, Signals

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, scope="module")
def many_files() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# A listener that stops.


async def test_what_runs_is_finished() -> None:
    async with serving() as server:
        running = [asyncio.create_task(get(server, path)) for path in ("/slow", "/stream")]
        for _ in running:
            await server.started.get()
        stopping = asyncio.create_task(server.listener.stop(DEADLINE))
        while not refuses(server.address):
            await asyncio.sleep(0)
        server.release.set()
        assert await asyncio.gather(*running) == [(200, "done"), (200, "first last")]
        assert await stopping == 0


async def test_a_kept_connection_may_send_its_last_request() -> None:
    """Its answer says that it was the last: no client finds its connection closed unawares."""
    async with serving() as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Connection" not in await reader.readuntil(b"\r\n\r\n0")
        stopping = asyncio.create_task(server.listener.stop(DEADLINE))
        while not server.listener.gate.is_closing:
            await asyncio.sleep(0)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Connection: close" in await reader.read()
        writer.close()
        assert await stopping == 0


async def test_who_is_in_the_queue_of_the_system_is_served() -> None:
    async with serving() as server:
        clients = []
        for _ in range(50):  # without a turn of the loop, so that none of them is accepted
            client = socket.create_connection(server.address)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
        stopping = asyncio.create_task(server.listener.stop(DEADLINE))
        for client in clients:
            client.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=client)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"Connection: close" in answer
            writer.close()
        assert await stopping == 0


async def test_patience_ends() -> None:
    async with serving() as server:
        running = asyncio.create_task(get(server, "/slow"))
        await server.started.get()
        assert await server.listener.stop(0.05) == 1
        with pytest.raises(aiohttp.ClientError):
            await running
        assert server.cancelled == 1


async def test_a_hurry_ends_it_at_once() -> None:
    async with serving() as server:
        running = asyncio.create_task(get(server, "/slow"))
        await server.started.get()
        hurry = asyncio.Event()
        stopping = asyncio.create_task(server.listener.stop(3600.0, hurry))
        hurry.set()
        assert await stopping == 1
        with pytest.raises(aiohttp.ClientError):
            await running


async def test_a_client_that_leaves_cancels_its_request() -> None:
    async with serving() as server:
        running = asyncio.create_task(get(server, "/slow"))
        await server.started.get()
        running.cancel()
        while not server.cancelled:
            await asyncio.sleep(0)


async def test_a_port_that_is_taken_is_named() -> None:
    async with serving() as server:
        host, port = server.address
        other = Server()
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1 port {port}"):
            await other.listener.start(host, port)


def test_urls() -> None:
    for host, url in (
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
    ):
        assert Listener.url_of(host, 1) == url


def refuses(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


# Signals.


async def test_signals() -> None:
    reloads: list[int] = []
    with Signals(lambda: reloads.append(1)) as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        while not reloads:
            await asyncio.sleep(0)
        assert not signals.stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await signals.stop.wait()
        assert signals.number == signal.SIGTERM
        assert not signals.hurry.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await signals.hurry.wait()
