"""`HttpTransport` over real sockets, against servers that behave and servers that do not."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

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
from aiosollol.net import transport as module
from aiosollol.net.connection import SLICE_BYTES
from aiosollol.net.connector import Connector
from aiosollol.net.http_exchange import MAX_ERROR_BODY
from aiosollol.net.transport import HttpTransport
from aiosollol.testing import FakeOllama, Fault
from aiosollol.wire.ollama.client import dump, load

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def connected(url: str, **fields: object) -> AsyncIterator[HttpTransport]:
    transport = HttpTransport(NodeSpec(url, name="node", **fields))  # type: ignore[arg-type]
    try:
        yield transport
    finally:
        await transport.aclose()


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """A server in which each connection is `handle`d. Gives its URL."""
    tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        tasks[task] = writer
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await turns()  # for what was accepted a moment ago
        for task, writer in tasks.items():
            task.cancel()
            await asyncio.wait([task])
            writer.transport.abort()
        await turns()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def raw_server(answer: bytes, *, hang: bool = False) -> AsyncIterator[str]:
    """A server that reads the head of a request and sends `answer`, whatever was asked."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if hang:
            await reader.read()

    async with serving(handle) as url:
        yield url


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


EMBED = dump({"model": "nomic-embed-text", "input": ["hello"]})


async def test_a_request_returns_the_body() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        body = await transport.request("POST", "/api/embed", EMBED, timeout=5)
        assert len(load("node", body)["embeddings"]) == 1


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers {} to everything, and the requests that it saw."""
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
            body = await reader.readexactly(int(lengths[0].split()[1]) if lengths else 0)
            seen.append(head + body)
            writer.write(http("200 OK", b"{}"))

    async with serving(handle) as url:
        yield url, seen


async def test_a_path_prefix_and_headers_reach_the_server() -> None:
    async with (
        recording() as (url, seen),
        connected(f"{url}/ollama/", headers={"Authorization": "Bearer secret"}) as transport,
    ):
        assert await transport.request("GET", "/api/version", timeout=5) == b"{}"
        assert "secret" not in repr(transport)
    assert seen[0].startswith(b"GET /ollama/api/version HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer secret\r\n" in seen[0]


async def test_a_request_is_what_a_server_expects() -> None:
    async with recording() as (url, seen), connected(f"{url}/ä%20b") as transport:
        await transport.request("GET", "/api/tags?all=1", timeout=5)
        await transport.request("POST", "/x", b"{}", timeout=5)
        await transport.request("POST", "/x", timeout=5)
    host = url.removeprefix("http://").encode()
    ours = b"Host: %b\r\nAccept: */*\r\nContent-Type: application/json\r\nUser-Agent: aiosollol\r\n"
    common = ours % host
    assert seen == [
        b"GET /%C3%A4%20b/api/tags?all=1 HTTP/1.1\r\n" + common + b"\r\n",
        b"POST /%C3%A4%20b/x HTTP/1.1\r\n" + common + b"Content-Length: 2\r\n\r\n{}",
        b"POST /%C3%A4%20b/x HTTP/1.1\r\n" + common + b"Content-Length: 0\r\n\r\n",
    ]


async def test_headers_of_the_user_replace_ours() -> None:
    headers = {"host": "ollama.example", "content-TYPE": "text/json", "X-Name": "Jürgen"}
    async with recording() as (url, seen), connected(url, headers=headers) as transport:
        await transport.request("POST", "/x", b"{}", timeout=5)
    head = seen[0].decode().lower()
    assert head.count("host:") == head.count("content-type:") == 1
    assert "host: ollama.example\r\n" in head
    assert "content-type: text/json\r\n" in head
    assert "x-name: jürgen\r\n" in head


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a:80", "a"),
        ("http://a:443", "a:443"),
        ("https://a", "a"),
        ("https://a:11434", "a:11434"),
        ("http://[::1]:80/p", "[::1]"),
        ("[fe80::1]:11434", "[fe80::1]:11434"),
        ("http://[fe80::1%25]:1", "[fe80::1]:1"),
    ],
)
def test_the_host_field(url: str, host: str) -> None:
    assert HttpTransport(NodeSpec(url))._host == host


async def test_headers_that_cannot_be_sent_are_told_without_their_values() -> None:
    headers = {"X Key": "secret"}
    async with recording() as (url, seen), connected(url, headers=headers) as transport:
        with pytest.raises(ProtocolError, match="'X Key'") as caught:
            await transport.request("GET", "/", timeout=5)
        assert "secret" not in str(caught.value)
    assert not seen


async def test_connections_are_reused() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        for _ in range(3):
            await transport.request("GET", "/api/version", timeout=5)
        assert repr(transport._connections) == "<Connections: 1 open, 1 idle>"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_connection_that_the_server_closed_is_replaced_without_an_error(
    is_streamed: bool,
) -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http("200 OK", b"{}"))
        await reader.read(10)  # the next request comes here, and gets no answer

    async def ask() -> bytes:
        if not is_streamed:
            return await transport.request("POST", "/x", timeout=5)
        async with transport.stream("/x", b"{}", timeout=5) as pieces:
            return b"".join([piece async for piece in pieces])

    async with serving(handle) as url, connected(url) as transport:
        assert await transport.request("POST", "/x", timeout=5) == b"{}"
        assert await ask() == b"{}"
        assert connections == 2
        assert await ask() == b"{}"
        assert connections == 3


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n"])
async def test_what_fails_on_a_new_connection_or_in_the_middle_is_not_tried_again(
    answer: bytes,
) -> None:
    requests = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for text in ([http("200 OK", b"{}")] if answer else []) + [answer]:
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            writer.write(text)

    async with serving(handle) as url, connected(url) as transport:
        if answer:
            await transport.request("POST", "/x", timeout=5)
        with pytest.raises(ConnectionLost):
            await transport.request("POST", "/x", timeout=5)
    assert requests == 1 + bool(answer)


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
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
            ProtocolError,
            id="compressed",
        ),
        pytest.param(b"HTTP/1.1 500 Oh\r\nContent-Length: 100\r\n\r\n{", NodeError, id="cut error"),
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


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="in the head"),
        pytest.param(http("200 OK", b"{}")[:-1], id="in the body"),
        pytest.param(http("500 Oh", b"{}")[:-1], id="in the body of an error"),
    ],
)
async def test_silence_in_the_middle_is_a_timeout_too(answer: bytes) -> None:
    async with raw_server(answer, hang=True) as url, connected(url) as transport:
        with pytest.raises(NodeError) as caught:
            await transport.request("GET", "/api/version", timeout=0.05)
        assert isinstance(caught.value, NodeTimeout) or b"500" in answer
        with pytest.raises(NodeError):
            async with transport.stream("/api/chat", b"{}", timeout=0.05) as pieces:
                async for _ in pieces:
                    pass


async def test_a_connection_that_takes_too_long_is_unreachable_or_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Connector, "dial", hang)
    async with connected("http://127.0.0.1:1") as transport:
        with pytest.raises(NodeTimeout, match=r"no answer within 0\.01 s"):
            await transport.request("GET", "/", timeout=0.01)
        monkeypatch.setattr(module, "CONNECT_SECONDS", 0.01)
        with pytest.raises(NodeUnreachable, match=r"no connection within 0\.01 s"):
            await transport.request("GET", "/", timeout=5)


async def test_a_large_request_reaches_the_server_and_is_late_if_it_is_not_taken() -> None:
    body = bytes(range(256)) * (SLICE_BYTES // 256 * 3 + 1)
    async with recording() as (url, seen), connected(url) as transport:
        assert await transport.request("POST", "/x", body, timeout=5) == b"{}"
        assert seen[0].endswith(b"\r\n\r\n" + body)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(handle) as url, connected(url) as transport:
        with pytest.raises(NodeTimeout):
            await transport.request("POST", "/x", bytes(100_000_000), timeout=0.05)


async def test_a_server_may_refuse_a_large_request_before_it_has_read_it() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http("413 Too Large", b'{"error":"too large"}'))
        await writer.drain()
        await asyncio.Event().wait()

    async with serving(handle) as url, connected(url) as transport:
        for _ in range(2):
            with pytest.raises(NodeError, match="too large"):
                await transport.request("POST", "/x", bytes(50_000_000), timeout=5)


async def test_an_error_without_end_is_cut() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 Oh\r\n\r\n<html>")
        while True:
            writer.write(bytes(MAX_ERROR_BODY))
            await writer.drain()

    async with serving(handle) as url, connected(url) as transport:
        with pytest.raises(ProtocolError, match="<html>"):
            await transport.request("POST", "/x", b"{}", timeout=5)
        with pytest.raises(ProtocolError, match="<html>"):
            async with transport.stream("/x", b"{}", timeout=5):
                pass


async def test_a_server_that_speaks_tls_is_told_apart() -> None:
    alert = b"\x15\x03\x01\x00\x02\x02\x46"
    async with raw_server(alert) as url, connected(url) as transport:
        with pytest.raises(ProtocolError, match="is it https://"):
            await transport.request("GET", "/", timeout=5)


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
async def test_whoever_is_cancelled_wherever_is_cancelled_and_leaves_nothing(
    is_streamed: bool, size: int
) -> None:
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
