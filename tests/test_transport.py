"""`HttpTransport` over real sockets, against servers that behave and servers that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from aiosollol.core.node import NodeSpec
from aiosollol.errors import (
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    ProtocolError,
)
from aiosollol.testing import FakeOllama, Fault
from aiosollol.transport import HttpTransport
from aiosollol.wire.ollama import dump, load

pytestmark = pytest.mark.anyio

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(url: str, **fields: object) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(NodeSpec(url, name="node", **fields))  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def raw_server(answer: bytes, *, hang: bool = False) -> AsyncIterator[str]:
    """A server that reads the head of a request and sends `answer`, whatever was asked."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if hang:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


EMBED = dump({"model": "nomic-embed-text", "input": ["hello"]})


async def test_a_request_returns_the_body() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        body = await transport.request("POST", "/api/embed", EMBED, timeout=5)
        assert len(load("node", body)["embeddings"]) == 1


async def test_a_path_prefix_and_headers_reach_the_server() -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/ollama/"
    async with server, connected(url, headers={"Authorization": "Bearer secret"}) as transport:
        assert await transport.request("GET", "/api/version", timeout=5) == b"{}"
        assert "secret" not in repr(transport)
    assert seen[0].startswith(b"GET /ollama/api/version HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret" in seen[0]


async def test_connections_are_reused() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        for _ in range(3):
            await transport.request("GET", "/api/version", timeout=5)
        session = transport._session
        assert session is not None
        assert session.connector is not None
        assert len(session.connector._conns) == 1  # type: ignore[attr-defined]


async def test_a_connection_that_the_server_closed_is_replaced_without_an_error() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http("200 OK", b"{}"))
        await reader.read(10)  # the next request comes here, and gets no answer
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, connected(url) as transport:
        assert await transport.request("POST", "/x", timeout=5) == b"{}"
        assert await transport.request("POST", "/x", timeout=5) == b"{}"
    assert connections == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        pytest.param(b"", ConnectionLost, id="closes at once"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, id="not HTTP"),
        pytest.param(b"\x00\xff" * 500, ProtocolError, id="garbage"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", ConnectionLost, id="cut body"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            NodeError,
            id="bad chunk",
        ),
        pytest.param(
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            NodeError,
            id="redirect elsewhere",
        ),
        pytest.param(
            http("404 Not Found", b'{"error":"model \\"x\\" not found"}'),
            ModelMissing,
            id="no such model",
        ),
        pytest.param(
            http("502 Bad Gateway", b"<html>bad</html>"),
            ProtocolError,
            id="a proxy's page",
        ),
    ],
)
async def test_what_goes_wrong_becomes_an_error_of_ours(
    answer: bytes, kind: type[NodeError]
) -> None:
    async with raw_server(answer) as url, connected(url) as transport:
        with pytest.raises(kind) as caught:
            await transport.request("POST", "/api/embed", EMBED, timeout=5)
        assert caught.value.node == "node"
        with pytest.raises(NodeError):
            async with transport.stream("/api/chat", EMBED, timeout=5) as pieces:
                async for _ in pieces:
                    pass


async def test_no_server_is_unreachable(unused_port: int) -> None:
    async with connected(f"http://127.0.0.1:{unused_port}") as transport:
        with pytest.raises(NodeUnreachable) as caught:
            await transport.request("GET", "/api/version", timeout=5)
        assert caught.value.__cause__ is not None
        with pytest.raises(NodeUnreachable):
            async with transport.stream("/api/chat", b"{}", timeout=5):
                pass


async def test_an_unknown_host_is_unreachable() -> None:
    async with connected("http://no-such-host.invalid:1") as transport:
        with pytest.raises(NodeUnreachable):
            await transport.request("GET", "/api/version", timeout=5)


async def test_silence_is_a_timeout() -> None:
    async with raw_server(b"", hang=True) as url, connected(url) as transport:
        with pytest.raises(NodeTimeout, match=r"0\.05 s"):
            await transport.request("GET", "/api/version", timeout=0.05)
        with pytest.raises(NodeTimeout):
            async with transport.stream("/api/chat", b"{}", timeout=0.05):
                pass


async def test_leaving_a_stream_early_cancels_the_work() -> None:
    body = dump({"model": "llama3.2", "messages": [{"role": "user", "content": "go on"}]})
    async with FakeOllama(seconds_per_chat_token=0.01) as fake, connected(fake.url) as transport:
        async with transport.stream("/api/chat", body, timeout=5) as pieces:
            assert await anext(pieces)
        while not fake.cancelled:
            await asyncio.sleep(0)
        assert fake.in_flight == 0


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
