"""A listener under clients that are slow, many, or mean; and one that is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiosollol import InvalidInput, SollolError
from aiosollol.gateway.middleware.guard import Guard
from aiosollol.gateway.middleware.limits import Limits
from aiosollol.gateway.serving.connections import ConnectionLimits
from aiosollol.gateway.serving.listener import Listener, Signals
from aiosollol.gateway.serving.supervisor import Supervisor

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # a hang fails; nothing is measured
MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def many_files() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Server:
    """An application with an endpoint that waits, one that streams, and one with much to read."""

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
        )  # or the system takes 4 MB
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


# Clients that hold on.


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


async def test_a_thousand_idle_connections_keep_nobody_out() -> None:
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


# Processes.

# Says so when it serves, notes its signals in a file, and ends at SIGTERM or with its parent.
CHILD = """
import os, signal, sys
name = sys.stdin.readline().strip()
note = open(name, "a", buffering=1)
signal.signal(signal.SIGHUP, lambda *_: note.write("hup\\n"))
signal.signal(signal.SIGTERM, lambda *_: (note.write("term\\n"), os._exit(0)))
note.write(f"began {os.getpid()}\\n")
os.write(1, b"ready\\n")
while os.read(0, 100): pass
note.write("orphan\\n")
"""


class Team:
    def __init__(self, folder: Path, source: str = CHILD, count: int = 2) -> None:
        self.files = [folder / f"{index}.txt" for index in range(count)]
        self.ready = asyncio.Event()
        self.signals = Signals(lambda: None)
        self.supervisor = Supervisor(
            (sys.executable, "-S", "-c", source),
            count,
            lambda index: str(self.files[index]).encode(),
            patience=1.0,
        )

    def said(self, index: int) -> list[str]:
        file = self.files[index]
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


@asynccontextmanager
async def working(team: Team) -> AsyncIterator[asyncio.Task[None]]:
    running = asyncio.create_task(team.supervisor.run(team.signals, team.ready.set))
    try:
        async with asyncio.timeout(DEADLINE):
            ready = asyncio.create_task(team.ready.wait())
            await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            yield running
    finally:
        team.signals.end()
        await asyncio.wait([running])


async def test_processes_begin_hear_and_end(tmp_path: Path) -> None:
    team = Team(tmp_path)
    async with working(team) as running:
        assert all(team.supervisor.pids)
        team.supervisor.reload()
        while not all(team.said(index) == ["began", "hup"] for index in range(2)):
            await asyncio.sleep(0.01)
    assert [team.said(index) for index in range(2)] == [["began", "hup", "term"]] * 2
    running.result()


async def test_a_process_that_dies_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    team = Team(tmp_path)
    with caplog.at_level(logging.WARNING, "aiosollol"):
        async with working(team):
            first, other = team.supervisor.pids
            assert first is not None
            os.kill(first, signal.SIGKILL)
            while team.supervisor.pids[0] in (None, first):
                await asyncio.sleep(0.01)
            assert team.supervisor.pids[1] == other
    assert team.said(0) == ["began", "began", "term"]
    assert "process 0 ended with SIGKILL; restarting it in 0.1 s" in caplog.text


async def test_a_process_that_never_serves_ends_all(tmp_path: Path) -> None:
    team = Team(tmp_path, "raise SystemExit(3)")
    async with working(team) as running:
        with pytest.raises(SollolError, match=r"process \d ended with code 3"):
            await running
    assert team.supervisor.pids == [None, None]


async def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    stubborn = CHILD.replace(", os._exit(0)", "")
    team = Team(tmp_path, stubborn, count=1)
    team.supervisor._patience = -4.9  # a tenth of a second in all
    async with working(team) as running:
        pass
    running.result()
    assert team.said(0) == ["began", "term"]


async def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Their stdin is held by it, and the system closes that however it dies."""
    note = tmp_path / "0.txt"
    parent = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", {CHILD!r}], stdin=subprocess.PIPE)
child.stdin.write({str(note)!r}.encode() + b"\\n")
child.stdin.flush()
sys.stdin.read()
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-c", parent),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(DEADLINE):
        while not note.exists() or "began" not in note.read_text():
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        while "orphan" not in note.read_text():
            await asyncio.sleep(0.01)
