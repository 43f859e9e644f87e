"""More clients than there may be connections: they wait in the system's queue, and are served."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
import pytest
from aiohttp import web

from aiosollol.gateway.serving import accepting, connections
from aiosollol.gateway.serving.connections import (
    ClientConnection,
    ConnectionLimiter,
    ConnectionLimits,
)
from aiosollol.gateway.serving.listener import Listener
from aiosollol.net.error_log import ErrorLog

pytestmark = pytest.mark.anyio

DEADLINE = 60.0  # a hang fails; nothing is measured
HEAD = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


@pytest.fixture(
    params=[
        False,
        pytest.param(True, marks=pytest.mark.skipif(not HAS_UVLOOP, reason="needs uvloop")),
    ],
    ids=["asyncio", "uvloop"],
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Server:
    """An application whose answers wait for `release`, but for ``/quick``."""

    def __init__(self, **limits: Any) -> None:
        self.release = asyncio.Event()
        self.running = self.most = 0
        app = web.Application()
        app.router.add_get("/quick", self.quick)
        app.router.add_get("/slow", self.slow)
        self.listener = Listener(app, ConnectionLimits(**limits))
        self.gate = self.listener.gate

    async def quick(self, request: web.Request) -> web.Response:
        return web.Response(text="quick")

    async def slow(self, request: web.Request) -> web.Response:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.release.wait()
        finally:
            self.running -= 1
        response = web.Response(text="slow")
        response.force_close()
        return response

    async def reaches(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0)

    async def ask(self, path: bytes = b"slow", *, source: str = "127.0.0.1") -> bytes:
        """The whole answer on a connection of its own."""
        host, port = self.listener.address
        reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
        try:
            writer.write(HEAD % path)
            return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Server]:
    server = Server(**limits)
    await server.listener.start("127.0.0.1", 0)
    try:
        async with asyncio.timeout(DEADLINE):
            yield server
    finally:
        server.release.set()
        await server.listener.stop(0.0)


@pytest.mark.parametrize("most", [1, 2, 16, 64])
@pytest.mark.parametrize("of", ["connections", "files"])
async def test_a_burst_is_served_by_few_connections(
    most: int, of: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if of == "files":
        monkeypatch.setattr(connections, "file_limit", lambda: 4 * most // 3 + 1)
        # As the system counts: the lowest number that is free.
        monkeypatch.setattr(connections, "number_of_file", lambda transport: server.gate.open)
    limits = {"max_connections": most} if of == "connections" else {}
    async with serving(**limits) as server:
        with caplog.at_level(logging.WARNING, "aiosollol"):
            asking = [asyncio.create_task(server.ask()) for _ in range(300)]
            await server.reaches(lambda: server.running >= most)
            assert not any(task.done() for task in asking)
            server.release.set()
            answers = await asyncio.gather(*asking)
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert server.gate.refused == 0
        # asyncio counts those that it has accepted a little later.
        assert server.most <= most + 3 * accepting._AT_ONCE
        assert caplog.text.count("others wait") == 1
        assert ("max_connections" in caplog.text) == (of == "connections")
        assert b" 200 " in await server.ask()


async def test_what_waits_is_refused_when_nothing_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(max_connections=3, full_timeout=0.01) as server:
        held = [asyncio.create_task(server.ask()) for _ in range(3)]
        await server.reaches(lambda: server.running == 3)
        for _ in range(20):
            head, _, body = (await server.ask()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in head
            message = orjson.loads(body)["error"]
            assert "max_connections=3 (--max-connections)" in message
        assert server.gate.refused == 20
        server.release.set()
        await asyncio.gather(*held)
        while b" 200 " not in await server.ask():  # as soon as it has noticed
            pass


async def test_a_large_request_that_is_refused_reads_why() -> None:
    async with serving(max_connections=1, full_timeout=0.01) as server:
        held = asyncio.create_task(server.ask())
        await server.reaches(lambda: server.running == 1)
        reader, writer = await asyncio.open_connection(*server.listener.address)
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        server.release.set()
        await held


async def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_IDLE_SECONDS", 0.0)
    async with serving(max_connections=3) as server:
        idle = [await asyncio.open_connection(*server.listener.address) for _ in range(2)]
        for reader, writer in idle:
            writer.write(HEAD % b"quick")
            await reader.readuntil(b"quick")
        busy = asyncio.create_task(server.ask())
        await server.reaches(lambda: server.running == 1)
        other = asyncio.create_task(server.ask())
        await server.reaches(lambda: server.running == 2)
        assert [await reader.read() for reader, _ in idle] == [b"", b""]
        for _, writer in idle:
            writer.close()
        server.release.set()
        assert all(b" 200 " in answer for answer in await asyncio.gather(busy, other))
        assert server.gate.refused == 0


async def test_a_connection_is_idle_from_one_request_to_the_next() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_connection(*server.listener.address)
        await server.reaches(lambda: server.gate.open == 1)
        (connection,) = cast(list[ClientConnection], server.listener._connections())
        await server.reaches(lambda: connection.is_idle)
        assert [connection.idle_for(now) for now in (5.0, 7.0)] == [0.0, 2.0]
        writer.write(HEAD % b"quick")
        await reader.readuntil(b"quick")
        await server.reaches(lambda: connection.is_idle)
        assert [connection.idle_for(now) for now in (9.0, 10.0)] == [0.0, 1.0]
        writer.close()


async def test_a_client_that_leaves_while_it_waits_takes_no_place() -> None:
    async with serving(max_connections=1) as server:
        held = asyncio.create_task(server.ask())
        await server.reaches(lambda: server.running == 1)
        for _ in range(20):
            _, writer = await asyncio.open_connection(*server.listener.address)
            writer.write(HEAD % b"slow")
            writer.transport.abort()
        last = asyncio.create_task(server.ask())
        server.release.set()
        assert all(b" 200 " in answer for answer in await asyncio.gather(held, last))


async def test_those_that_wait_when_it_stops_are_served() -> None:
    async with serving(max_connections=2) as server:
        asking = [asyncio.create_task(server.ask()) for _ in range(20)]
        await server.reaches(lambda: server.running >= 2)
        stopping = asyncio.create_task(server.listener.stop(DEADLINE))
        server.release.set()
        answers = await asyncio.gather(*asking)
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert await stopping == 0


# Without a server.


class Listening:
    """A listening socket: what `accept` gives or raises, one after the other."""

    def __init__(self, *queue: int | None) -> None:
        self.queue = list(queue)

    def accept(self) -> tuple[socket.socket, Any]:
        number = self.queue.pop(0) if self.queue else errno.EAGAIN
        if number is not None:
            raise OSError(number, "accept")
        return socket.socket(), None


@pytest.mark.parametrize(
    ("queue", "taken", "is_failure"),
    [
        ([], 0, False),
        ([None, None], 2, False),
        ([None, errno.EMFILE, None], 1, True),
        ([errno.ENFILE], 0, True),
        ([errno.ENOBUFS], 0, True),
        ([errno.ECONNABORTED, None], 1, False),
        ([None] * 20, 16, False),
    ],
)
def test_what_is_in_the_queue(queue: list[int | None], taken: int, is_failure: bool) -> None:
    failures: list[bool] = []
    listening = cast(socket.socket, Listening(*queue))
    found = accepting._take(listening, 16, lambda: failures.append(True))
    assert (len(found), bool(failures)) == (taken, is_failure)
    for each in found:
        assert not each.getblocking()
        each.close()


async def test_without_files_it_looks_again_and_again_but_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where asyncio accepts: uvloop closes what it cannot accept, and so is never without."""
    if not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
        return
    taken = accepting._take
    looks = 0

    def none(*arguments: Any, **options: Any) -> list[socket.socket]:
        nonlocal looks
        looks += 1
        if looks <= 3:
            options["on_failure"]()
            return []
        return taken(*arguments, **options)

    monkeypatch.setattr(accepting, "_take", none)
    async with serving(full_timeout=0.05) as server:
        server.release.set()
        assert b" 200 " in await server.ask()
        assert looks <= 10


class File:
    def __init__(self, number: int, host: str = "127.0.0.1") -> None:
        self._number = number
        self._host = host

    def fileno(self) -> int:
        return self._number

    def get_extra_info(self, name: str) -> File | tuple[str, int]:
        return self if name == "socket" else (self._host, 0)


@pytest.mark.parametrize(
    ("files", "most", "numbers", "is_full"),
    [
        (1024, 16_384, [767], False),  # a quarter is for others
        (1024, 16_384, [768], True),
        (20_000, 16_384, [18_975], False),  # or 1,024
        (20_000, 16_384, [18_976], True),
        (1024, 2, [10], False),
        (1024, 2, [10, 11], True),
        (float("inf"), 16_384, [10**6], False),
    ],
)
async def test_when_a_gate_is_full(
    files: float, most: int, numbers: list[int], is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "file_limit", lambda: files)
    filled: list[bool] = []
    gate = ConnectionLimiter(
        ConnectionLimits(max_connections=most), ErrorLog("gateway"), lambda: filled.append(True)
    )
    for number in numbers:
        gate.enter(cast(asyncio.BaseTransport, File(number)))
    assert bool(filled) is is_full
    if is_full:
        words = "--max-connections" if most == 2 else "ulimit -n"
        assert words in gate.why_full()
        assert not gate.has_room()
        gate.leave("127.0.0.1")
        assert gate.has_room()
        assert gate.room.is_set()


async def test_a_gate_that_was_full_opens_when_a_sixteenth_has_left() -> None:
    filled: list[bool] = []
    gate = ConnectionLimiter(
        ConnectionLimits(max_connections=160), ErrorLog("gateway"), lambda: filled.append(True)
    )
    for number in range(160):
        gate.enter(cast(asyncio.BaseTransport, File(number)))
    for _ in range(10):
        gate.leave("127.0.0.1")
        assert not gate.room.is_set()
    gate.leave("127.0.0.1")
    assert gate.room.is_set()
    gate.empty()
    assert not gate.room.is_set()
    for number in range(11):
        gate.enter(cast(asyncio.BaseTransport, File(number)))
    assert filled == [True, True]


@pytest.mark.parametrize(
    ("counts", "client", "has_reserve"),
    [
        ({"10.0.0.1": 160}, "10.0.0.1", False),
        ({"10.0.0.1": 160}, "10.0.0.2", True),
        ({"10.0.0.1": 160, "10.0.0.2": 9}, "10.0.0.2", True),
        ({"10.0.0.1": 160, "10.0.0.2": 10}, "10.0.0.2", False),  # a sixteenth over the limit
        ({"10.0.0.1": 160, "10.0.0.2": 10}, "10.0.0.3", False),
        ({"10.0.0.1": 80, "10.0.0.2": 80}, "10.0.0.1", False),
        ({"10.0.0.1": 80, "10.0.0.2": 80}, "10.0.0.3", True),
        ({"2001:db8::1": 160}, "2001:db8::2", False),  # one network of a host
    ],
)
async def test_what_is_kept_for_other_addresses(
    counts: dict[str, int], client: str, has_reserve: bool
) -> None:
    limits = ConnectionLimits(max_connections=160)
    gate = ConnectionLimiter(limits, ErrorLog("gateway"), lambda: None)
    for host, count in counts.items():
        for number in range(count):
            gate.enter(cast(asyncio.BaseTransport, File(number, host)))
    assert gate.has_reserve_for(connections.client_at((client, 0))) is has_reserve


@pytest.mark.skipif(sys.platform == "darwin", reason="has no 127.0.0.2")
async def test_one_address_keeps_no_other_out() -> None:
    async with serving(max_connections=32, full_timeout=0.01) as server:
        held = [asyncio.create_task(server.ask()) for _ in range(32)]
        await server.reaches(lambda: server.running == 32)
        flood = [asyncio.create_task(server.ask()) for _ in range(50)]
        other = asyncio.create_task(server.ask(source="127.0.0.2"))
        await server.reaches(lambda: server.running == 33)
        assert all(b" 503 " in answer for answer in await asyncio.gather(*flood))
        server.release.set()
        assert b" 200 " in await other
        await asyncio.gather(*held)
