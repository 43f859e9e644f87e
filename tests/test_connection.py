"""Connections: made, used, kept and closed as they should be, by asyncio's loop and by uvloop."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiosollol.connection import dial, exchange, kept
from aiosollol.connection.dial import Dialer, WrongCertificate
from aiosollol.connection.exchange import Exchange, Late
from aiosollol.connection.kept import Closed, Connections
from aiosollol.connection.protocol import SLICE_BYTES
from aiosollol.core.address import Address
from aiosollol.core.node import NodeSpec
from aiosollol.errors import NodeUnreachable
from aiosollol.transport import HttpTransport
from aiosollol.wire.http1 import BadResponse

pytestmark = pytest.mark.anyio

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
FOREVER = float("inf")


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Served:
    """A server on loopback. connections: how many there were. open: how many there are."""

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
        await turns()  # for what was accepted a moment ago
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
) -> AsyncIterator[Connections]:
    connections = Connections(Dialer(Address(scheme, host, port), fingerprint))
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


async def over(begun: Exchange) -> Exchange:
    while not begun.is_over:
        await begun.changed()
    return begun


async def asked(connections: Connections, request: bytes = HEAD) -> Exchange:
    """One exchange, to its end."""
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


# Kept and reused.


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
        used[0].idle_since = used[1].idle_since = -kept.KEEP_SECONDS
        connections._sweep()
        assert "1 idle" in repr(connections)
        await until(lambda: server.open == 1)
        assert connections._sweep_timer is not None
        monkeypatch.setattr(kept, "KEEP_SECONDS", 0.0)
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


# How an exchange ends.


async def test_an_answer_may_come_byte_by_byte() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\n" + http(b"hello", b"A: b\r\n")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for at in range(len(answer)):
            writer.write(answer[at : at + 1])
            await writer.drain()
            await turns(2)
        await reader.read()

    async with served(handle) as server, connections_to(server.port) as connections:
        done = await asked(connections)
        assert (done.status, done.read(), done.error) == (200, b"hello", None)
        assert connections.take() is not None


@pytest.mark.parametrize(
    ("answer", "status", "kind"),
    [
        pytest.param(b"", 0, ConnectionResetError, id="nothing"),
        pytest.param(b"HTTP/1.1 2", 0, ConnectionResetError, id="in the first line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA:", 0, ConnectionResetError, id="in the head"),
        pytest.param(http(b"{}")[:-1], 200, ConnectionResetError, id="in the body"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
            200,
            ConnectionResetError,
            id="in a chunk",
        ),
        pytest.param(b"\0" * 100, 0, BadResponse, id="garbage"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000, 0, BadResponse, id="an endless head"),
    ],
)
async def test_a_bad_end_is_an_error(answer: bytes, status: int, kind: type[Exception]) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with served(handle) as server, connections_to(server.port) as connections:
        done = await asked(connections)
        assert done.status == status
        assert type(done.error) is kind
        assert "over" in repr(done)


async def test_an_answer_may_end_with_its_connection() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")

    async with served(handle) as server, connections_to(server.port) as connections:
        assert (await asked(connections)).read() == b"until the end"
        assert connections.take() is None


async def test_a_reset_is_no_end() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf of i")
        await writer.drain()
        seen.set()
        await reset.wait()
        bare = writer.get_extra_info("socket")
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()

    seen, reset = asyncio.Event(), asyncio.Event()
    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        begun = connection.begin(FOREVER)
        connection.send(HEAD)
        await until(lambda: begun.status)
        reset.set()
        assert isinstance((await over(begun)).error, ConnectionResetError)


async def test_an_endless_answer_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_BODY", 1 << 20)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(100_000))
            await writer.drain()

    async with served(handle) as server, connections_to(server.port) as connections:
        done = await asked(connections)
        assert isinstance(done.error, BadResponse)
        await until(lambda: not server.open)


async def test_of_an_error_no_more_than_a_message_is_read() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Oh\r\n\r\n")
        while True:
            writer.write(bytes(10_000))
            await writer.drain()

    async with served(handle) as server, connections_to(server.port) as connections:
        done = await asked(connections)
        assert (done.status, done.error) == (500, None)
        assert exchange.MAX_ERROR_BODY <= len(done.read()) < 1 << 20
        await until(lambda: not server.open)


async def test_what_is_late_fails_and_leaves_what_is_over_alone() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        begun = connection.begin(FOREVER)
        connection.send(HEAD)
        waiting = asyncio.ensure_future(over(begun))
        await until(lambda: server.open)
        begun.expire()
        await waiting
        assert isinstance(begun.error, Late)
        with pytest.raises(Late):
            begun.read()
        begun.fail(OSError("too late"))
        assert isinstance(begun.error, Late)
        await until(lambda: not server.open)


# Requests that are large, answers that are streamed.


def sent_length(head: bytes) -> int:
    return int(head.lower().split(b"content-length:")[1].split(b"\r")[0])


@pytest.mark.parametrize("size", [SLICE_BYTES + 1, 10_000_000])
async def test_a_large_request_arrives_and_others_get_their_turn(size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        received = await reader.readexactly(sent_length(head))
        writer.write(http(hashlib.sha256(received).hexdigest().encode()))
        await reader.read()

    turned = 0

    async def count() -> None:
        nonlocal turned
        while True:
            await asyncio.sleep(0)
            turned += 1

    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        counting = asyncio.ensure_future(count())
        begun = connection.begin(FOREVER)
        await connection.send_large(
            b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body
        )
        assert turned >= len(body) // SLICE_BYTES
        counting.cancel()
        await over(begun)
        assert begun.read().decode() == hashlib.sha256(body).hexdigest()
        assert connections.take() is connection


async def test_an_answer_before_the_request_is_sent_ends_it_and_the_connection() -> None:
    body = bytes(50_000_000)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await gone.wait()

    gone = asyncio.Event()
    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        begun = connection.begin(FOREVER)
        await connection.send_large(
            b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), body
        )
        assert begun.is_over
        assert not begun.is_sent
        assert (begun.status, begun.read(), begun.error) == (413, b"big", None)
        assert connections.take() is None, "it is in the middle of a request"
        gone.set()


async def test_a_server_that_takes_nothing_is_waited_for_and_given_up_when_it_is_late() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()

    gone = asyncio.Event()
    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        begun = connection.begin(FOREVER)
        sending = asyncio.ensure_future(connection.send_large(HEAD, bytes(100_000_000)))
        await until(lambda: connection._is_choked)
        await turns()
        assert not sending.done()
        begun.expire()
        await sending
        assert isinstance(begun.error, Late)
        gone.set()


async def test_a_stream_waits_for_a_slow_reader() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for number in range(size // 100_000):
            writer.write(bytes([number % 256]) * 100_000)
            await writer.drain()
        await reader.read()

    size = 40_000_000
    async with served(handle) as server, connections_to(server.port) as connections:
        connection = await connections.make(5)
        begun = connection.begin(FOREVER, is_streamed=True)
        connection.send(HEAD)
        while not begun.is_readable:
            await begun.changed()
        await until(lambda: begun._is_paused)
        unread = begun._size
        await turns(200)
        assert begun._size == unread, "it is held up"
        assert unread <= 2 * exchange._MANY_BYTES
        received = hashlib.sha256()
        count = 0
        while True:
            while not begun.is_readable:
                await begun.changed()
            piece = begun.read()
            if not piece:
                break
            assert begun._size <= 2 * exchange._MANY_BYTES
            received.update(piece)
            count += len(piece)
        expected = b"".join(bytes([n % 256]) * 100_000 for n in range(size // 100_000))
        assert count == size
        assert received.digest() == hashlib.sha256(expected).digest()
        assert connections.take() is connection


# The end of all of them.


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

    monkeypatch.setattr(dial.Dialer, "dial", hang)
    connections = Connections(Dialer(Address("http", "127.0.0.1", 1)))
    making = [asyncio.ensure_future(connections.make(60)) for _ in range(3)]
    await turns()
    await connections.aclose()
    for each in making:
        with pytest.raises(Closed):
            await each
    with pytest.raises(TimeoutError):
        await Connections(Dialer(Address("http", "127.0.0.1", 1))).make(0.0)


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
    real = Dialer.dial

    async def made_too_late(self: Dialer, factory: Any) -> Any:
        connection = await real(self, factory)
        connections._is_closed = True
        return connection

    monkeypatch.setattr(Dialer, "dial", made_too_late)
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

    async def ask(connections: Connections) -> bytes:
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


# Names.


NOBODY = "::1"  # nobody listens there: servers here are at 127.0.0.1


class Names:
    """A name server. hosts: what each name stands for. asked: how often."""

    def __init__(self) -> None:
        self.asked = 0
        self.hosts: dict[str, list[str]] = {}

    def look_up(self, name: str) -> list[Any]:
        self.asked += 1
        if name not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in host else socket.AF_INET, 1, 6, "", (host, 0))
            for host in self.hosts[name]
        ]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names that there are."""
    known = Names()

    async def getaddrinfo(host: str, port: int, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return known.look_up(host)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return known


async def test_a_name_is_looked_up_once_for_many(names: Names) -> None:
    async with served(polite) as server, connections_to(server.port, host="node") as connections:
        names.hosts["node"] = ["127.0.0.1"]
        made = await asyncio.gather(*(connections.make(5) for _ in range(10)))
        assert len(set(made)) == 10
        assert names.asked == 1


async def test_a_name_is_looked_up_again_when_it_leads_nowhere(names: Names) -> None:
    async with served(polite) as server, connections_to(server.port, host="node") as connections:
        with pytest.raises(socket.gaierror):
            await connections.make(5)
        names.hosts["node"] = [NOBODY]
        with pytest.raises(OSError):  # noqa: PT011  # refused, or no IPv6 at all
            await connections.make(5)
        names.hosts["node"] = ["127.0.0.1"]
        await connections.make(5)
        await connections.make(5)
        assert names.asked == 3
        names.hosts["node"] = []
        connections._dialer._known_until = 0.0
        with pytest.raises(OSError, match="no address"):
            await connections.make(5)


async def test_an_address_that_fails_is_followed_by_the_next(names: Names) -> None:
    async with served(polite) as server, connections_to(server.port, host="node") as connections:
        names.hosts["node"] = [NOBODY, NOBODY, "127.0.0.1"]
        assert (await asked(connections)).read() == b"{}"
        names.hosts["node"] = [NOBODY, NOBODY]
        connections._dialer._known_until = 0.0
        with pytest.raises(OSError):  # noqa: PT011
            await connections.make(5)


async def test_an_address_that_is_silent_does_not_hold_up_the_next(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = []

    async def reach(host: str) -> Any:
        if host == "::1":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(host)
        return host, None

    monkeypatch.setattr(dial, "_NEXT_SECONDS", 0.0)
    assert await dial._first(reach, ["::1", "127.0.0.1"]) == ("127.0.0.1", None)
    await until(lambda: cancelled)


async def test_of_two_that_connect_at_once_one_is_closed() -> None:
    aborted = []

    class Transport:
        def __init__(self, host: str) -> None:
            self.host = host

        def abort(self) -> None:
            aborted.append(self.host)

    both = asyncio.Event()

    async def reach(host: str) -> Any:
        if host == "b":
            both.set()
        try:
            await both.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # it was there at the same moment
        return Transport(host), None

    dial_first: Any = dial._first
    async with asyncio.timeout(20):
        transport, _ = await dial_first(reach, ["a", "b"])
    await until(lambda: aborted)
    assert {transport.host, *aborted} == {"a", "b"}


async def test_who_is_cancelled_while_two_are_tried_ends_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = []

    async def reach(host: str) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(host)

    monkeypatch.setattr(dial, "_NEXT_SECONDS", 0.0)
    task = asyncio.ensure_future(dial._first(reach, ["a", "b"]))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: len(ended) == 2)


def test_families_take_turns() -> None:
    found = [(10, "::1"), (10, "::2"), (10, "::3"), (2, "127.0.0.1")]
    assert dial._interleaved(found) == ["::1", "127.0.0.1", "::2", "::3"]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (("127.0.0.1", 1), "127.0.0.1"),
        (("::1", 1, 0, 0), "::1"),
        (("fe80::1", 1, 0, 2), "fe80::1%2"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::1%eth0"),
    ],
)
def test_a_zone_stays_with_its_address(address: tuple[Any, ...], host: str) -> None:
    assert dial._as_host(address) == host


# TLS.


class Certificate:
    """A certificate that signs itself, for localhost and 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.path, key = directory / "cert.pem", directory / "key.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        )
        subprocess.run(
            [
                *(*command.split(), "-keyout", key, "-out", self.path, "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(self.path, key)
        der = ssl.PEM_cert_to_DER_cert(self.path.read_text())
        self.fingerprint = hashlib.sha256(der).hexdigest()

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.path))


@pytest.fixture
def certificate(
    require: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
    _made: list[Certificate] = [],  # noqa: B006  # one for all tests: making it takes a while
) -> Certificate:
    require("openssl")
    if not _made:
        _made.append(Certificate(tmp_path_factory.mktemp("tls")))
    return _made[0]


async def test_a_trusted_certificate(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_trusting_authorities", certificate.trust)
    async with (
        served(polite, certificate.server) as server,
        connections_to(server.port, scheme="https") as connections,
    ):
        for _ in range(3):
            assert (await asked(connections)).read() == b"{}"
        assert server.connections == 1
    await until(lambda: not server.open)


async def test_a_certificate_that_nobody_vouches_for(certificate: Certificate) -> None:
    async with (
        served(polite, certificate.server) as server,
        connections_to(server.port, scheme="https") as connections,
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            await connections.make(5)
    assert not server.connections


async def test_a_certificate_for_another_name(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch, names: Names
) -> None:
    monkeypatch.setattr(dial, "_trusting_authorities", certificate.trust)
    async with (
        served(polite, certificate.server) as server,
        connections_to(server.port, scheme="https", host="node") as connections,
    ):
        names.hosts["node"] = ["127.0.0.1"]
        with pytest.raises(ssl.SSLCertVerificationError):
            await connections.make(5)


async def test_a_pinned_certificate_needs_nobody_to_vouch_and_no_name(
    certificate: Certificate, names: Names
) -> None:
    async with (
        served(polite, certificate.server) as server,
        connections_to(
            server.port, scheme="https", host="node", fingerprint=certificate.fingerprint
        ) as connections,
    ):
        names.hosts["node"] = ["127.0.0.1"]
        assert (await asked(connections)).read() == b"{}"
        assert (await asked(connections)).read() == b"{}"
        assert server.connections == 1


async def test_another_certificate_than_the_pinned_one_is_told_nothing(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    monkeypatch.setattr(dial, "_trusting_authorities", certificate.trust)
    async with (
        served(handle, certificate.server) as server,
        connections_to(server.port, scheme="https", fingerprint="0" * 64) as connections,
    ):
        with pytest.raises(WrongCertificate, match=certificate.fingerprint):
            await connections.make(5)
        await until(lambda: not server.open)
    assert not b"".join(received)


async def test_a_server_without_tls() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with (
        served(handle) as server,
        connections_to(server.port, scheme="https", fingerprint="0" * 64) as connections,
    ):
        with pytest.raises(ssl.SSLError):
            await connections.make(5)


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        pytest.param(
            None, r"its certificate is not trusted \(self.signed certificate", id="signed"
        ),
        pytest.param("0" * 64, "its certificate has the fingerprint", id="pinned"),
    ],
)
async def test_what_is_wrong_with_a_certificate_is_said_in_words(
    certificate: Certificate, fingerprint: str | None, words: str
) -> None:
    async with served(polite, certificate.server) as server:
        url = f"https://127.0.0.1:{server.port}"
        transport = HttpTransport(NodeSpec(url, fingerprint=fingerprint))
        with pytest.raises(NodeUnreachable, match=words):
            await transport.request("GET", "/", timeout=5)
        await transport.aclose()


async def test_that_a_server_has_no_tls_is_said_in_words() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with served(handle) as server:
        transport = HttpTransport(NodeSpec(f"https://127.0.0.1:{server.port}"))
        with pytest.raises(NodeUnreachable, match="is it http://"):
            await transport.request("GET", "/", timeout=5)
        await transport.aclose()


async def test_a_server_that_never_says_goodbye_does_not_hold_up_the_end(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TLS of a wedged server: it reads nothing any more, so it answers no close_notify."""
    monkeypatch.setattr(dial, "_trusting_authorities", certificate.trust)
    monkeypatch.setattr(dial, "_GOODBYE_SECONDS", 0.01)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"{}"))
        await writer.drain()
        writer.transport.pause_reading()
        await gone.wait()

    gone = asyncio.Event()
    async with served(handle, certificate.server) as server:
        async with connections_to(server.port, scheme="https") as connections:
            await asked(connections)
        gone.set()


async def test_a_large_request_and_a_slow_reader_with_tls(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "_trusting_authorities", certificate.trust)
    body = bytes(range(256)) * 20_000

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        received = await reader.readexactly(len(body))
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(received), 50_000):
            piece = received[at : at + 50_000]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with (
        served(handle, certificate.server) as server,
        connections_to(server.port, scheme="https") as connections,
    ):
        connection = await connections.make(5)
        begun = connection.begin(FOREVER, is_streamed=True)
        await connection.send_large(HEAD, body)
        received = b""
        while True:
            while not begun.is_readable:
                await begun.changed()
            await turns(3)
            piece = begun.read()
            if not piece:
                break
            received += piece
        assert received == body
        assert connections.take() is connection


async def test_all_at_once_on_many_connections() -> None:
    async with served(polite) as server, connections_to(server.port) as connections:
        done = await asyncio.gather(*(asked(connections) for _ in range(200)))
        assert {each.read() for each in done} == {b"{}"}
        assert server.connections <= 200
        again = await asyncio.gather(*(asked(connections) for _ in range(100)))
        assert {each.read() for each in again} == {b"{}"}
        assert server.connections <= 200
