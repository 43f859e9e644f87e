"""Streams of `HttpTransport`, and requests that are cancelled or closed."""

from __future__ import annotations

import asyncio
import gc

import pytest
from transport_servers import EMBED, connected, http, raw_server, serving, turns

from aiosollol.errors import (
    ConnectionLost,
    NodeTimeout,
    NodeUnreachable,
)
from aiosollol.net.connection import SLICE_BYTES
from aiosollol.testing import FakeOllama, Fault

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_pieces_come_as_they_are_sent_and_those_before_the_end_are_not_lost() -> None:
    go_on = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n5\r\nth")

    async with (
        serving(handle) as url,
        connected(url) as transport,
        transport.stream("/x", b"{}", timeout=5) as pieces,
    ):
        assert await anext(pieces) == b"one"
        go_on.set()
        rest = b""
        with pytest.raises(ConnectionLost):
            async for piece in pieces:
                rest += piece
        assert rest == b"twoth"


async def test_a_stream_that_stalls_ends_with_the_name_of_the_setting() -> None:
    answer = http("200 OK", b"{}")[:-1]
    async with (
        raw_server(answer, hang=True) as url,
        connected(url) as transport,
        transport.stream("/x", b"{}", timeout=60, stall_timeout=0.01) as pieces,
    ):
        assert await anext(pieces) == b"{"
        with pytest.raises(NodeTimeout, match=r"sent nothing for 0\.01 s \(see stall_timeout\)"):
            await anext(pieces)


async def test_only_a_wait_for_a_piece_is_a_stall() -> None:
    """Not one for the first piece, and no pause of the reader."""
    steps = [asyncio.Event(), asyncio.Event()]

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for step, piece in zip(steps, (b"one", b"two"), strict=True):
            await step.wait()
            writer.write(b"3\r\n%b\r\n" % piece)
        writer.write(b"0\r\n\r\n")

    async with (
        serving(handle) as url,
        connected(url) as transport,
        transport.stream("/x", b"{}", timeout=600, stall_timeout=60) as pieces,
    ):
        exchange = pieces._exchange
        assert exchange is not None
        ends_at = exchange.at
        for step, waits_until_end in zip(steps, (True, False), strict=True):
            reading = asyncio.ensure_future(anext(pieces))
            await turns()
            assert (exchange.at == ends_at) is waits_until_end
            step.set()
            await reading
            assert exchange.at == ends_at
        assert [piece async for piece in pieces] == []


async def test_a_stream_that_was_read_gives_its_connection_back() -> None:
    async with raw_server(http("200 OK", b"{}"), hang=True) as url, connected(url) as transport:
        async with transport.stream("/x", b"{}", timeout=5) as pieces:
            assert [piece async for piece in pieces] == [b"{}"]
            assert repr(transport._connections) == "<Connections: 1 open, 1 idle>"
        assert repr(transport._connections) == "<Connections: 1 open, 1 idle>"


async def test_a_stream_that_is_dropped_is_closed() -> None:
    answer = http("200 OK", b"{}")[:-1]
    async with raw_server(answer, hang=True) as url, connected(url) as transport:
        pieces = await transport.stream("/x", b"{}", timeout=5).__aenter__()
        assert await anext(pieces) == b"{"
        del pieces
        gc.collect()
        while repr(transport._connections) != "<Connections: 0 open, 0 idle>":
            await asyncio.sleep(0)


async def test_closing_ends_requests_and_streams_that_are_under_way() -> None:
    answer = http("200 OK", b"{}")[:-1]
    async with raw_server(answer, hang=True) as url, connected(url) as transport:
        asking = asyncio.ensure_future(transport.request("GET", "/", timeout=5))
        async with transport.stream("/x", b"{}", timeout=5) as pieces:
            assert await anext(pieces) == b"{"
            await turns()
            await transport.aclose()
            with pytest.raises(ConnectionLost):
                await anext(pieces)
        with pytest.raises(ConnectionLost):
            await asking
        with pytest.raises(NodeUnreachable, match="closed"):
            async with transport.stream("/x", b"{}", timeout=5):
                pass


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("size", [2, SLICE_BYTES * 3])
async def test_a_call_cancelled_at_any_point_leaves_nothing(is_streamed: bool, size: int) -> None:
    body = bytes(size)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(size)
            writer.write(http("200 OK", b"{}")[:-1])
            await writer.drain()
            await turns(2)
            writer.write(b"}")

    async def ask() -> bytes:
        if not is_streamed:
            return await transport.request("POST", "/x", body, timeout=5)
        async with transport.stream("/x", body, timeout=5) as pieces:
            return b"".join([piece async for piece in pieces])

    async with serving(handle) as url, connected(url) as transport:
        patience, is_done = 0, False
        while not is_done:
            task = asyncio.ensure_future(ask())
            await turns(patience)
            is_done = task.done()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.result() == b"{}"
            assert repr(transport._deadlines) == "<Deadlines: 0 open>"
            patience += 1
        assert await ask() == b"{}"
        await turns()
        assert repr(transport._connections) == "<Connections: 1 open, 1 idle>"


async def test_leaving_a_stream_early_cancels_the_work() -> None:
    told = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await reader.readuntil(b"}")
        assert await reader.read() == b"", "the client hangs up"
        told.set()

    async with serving(handle) as url, connected(url) as transport:
        async with transport.stream("/api/chat", EMBED, timeout=5) as pieces:
            assert await anext(pieces) == b"one"
        await told.wait()
        assert repr(transport._connections) == "<Connections: 0 open, 0 idle>"


async def test_cancelling_a_request_cancels_it_on_the_wire() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        fake.fault = Fault.HANG
        task = asyncio.create_task(transport.request("POST", "/api/embed", EMBED, timeout=5))
        while not fake.in_flight:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while fake.in_flight:
            await asyncio.sleep(0)
        assert fake.cancelled == 1


async def test_a_closed_transport_says_so() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        await transport.aclose()
        await transport.aclose()
        with pytest.raises(NodeUnreachable, match="closed"):
            await transport.request("GET", "/api/version", timeout=5)
