"""Exchanges on a connection: how answers end, and large or streamed ones, by both event loops."""

from __future__ import annotations

import asyncio
import hashlib
import socket

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

from aiosollol.net import http_exchange
from aiosollol.net.connection import SLICE_BYTES
from aiosollol.net.http_exchange import Late
from aiosollol.wire.http1 import BadResponse

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


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
    monkeypatch.setattr(http_exchange, "MAX_BODY", 1 << 20)

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
        assert http_exchange.MAX_ERROR_BODY <= len(done.read()) < 1 << 20
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
        assert unread <= 2 * http_exchange._MANY_BYTES
        received = hashlib.sha256()
        count = 0
        while True:
            while not begun.is_readable:
                await begun.changed()
            piece = begun.read()
            if not piece:
                break
            assert begun._size <= 2 * http_exchange._MANY_BYTES
            received.update(piece)
            count += len(piece)
        expected = b"".join(bytes([n % 256]) * 100_000 for n in range(size // 100_000))
        assert count == size
        assert received.digest() == hashlib.sha256(expected).digest()
        assert connections.take() is connection


async def test_all_at_once_on_many_connections() -> None:
    async with served(polite) as server, connections_to(server.port) as connections:
        done = await asyncio.gather(*(asked(connections) for _ in range(200)))
        assert {each.read() for each in done} == {b"{}"}
        assert server.connections <= 200
        again = await asyncio.gather(*(asked(connections) for _ in range(100)))
        assert {each.read() for each in again} == {b"{}"}
        assert server.connections <= 200
