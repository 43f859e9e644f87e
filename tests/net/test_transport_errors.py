"""`HttpTransport` against servers that fail, hang or answer wrongly."""

from __future__ import annotations

import asyncio

import pytest
from transport_servers import EMBED, connected, http, raw_server, recording, serving

from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NodeUnreachable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
)
from aiosollol.net import transport as module
from aiosollol.net.connection import SLICE_BYTES
from aiosollol.net.connector import Connector
from aiosollol.net.http_exchange import MAX_ERROR_BODY

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


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


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    "late", [b"HTTP/1.0 408 Late\r\n\r\n<html>", b"HTTP/1.1 408 L\r\nContent-Length: 0\r\n\r\n"]
)
async def test_a_408_on_a_connection_that_was_used_before_is_sent_again(
    late: bytes, is_streamed: bool
) -> None:
    requests = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for answer in (http("200 OK", b"{}"), late):
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            writer.write(answer)

    async with serving(handle) as url, connected(url) as transport:
        assert await transport.request("POST", "/x", timeout=5) == b"{}"
        if is_streamed:
            async with transport.stream("/x", b"", timeout=5) as pieces:
                assert b"".join([piece async for piece in pieces]) == b"{}"
        else:
            assert await transport.request("POST", "/x", timeout=5) == b"{}"
    assert requests == 3


@pytest.mark.parametrize("status", ["408 Late", "409 Conflict", "503 Busy"])
async def test_a_status_on_a_new_connection_is_the_answer(status: str) -> None:
    requests = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        writer.write(http(status, b"words"))

    async with serving(handle) as url, connected(url) as transport:
        with pytest.raises(ResponseError, match="words"):
            await transport.request("POST", "/x", timeout=5)
    assert requests == 1


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
            b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\n.",
            ProtocolError,
            id="compressed in another way",
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
            NodeUnavailable,
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


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Retry-After: 7", 7.0),
        ("retry-after: 3600", 60.0),
        ("Retry-After: -1", None),
        ("X: 1", None),
    ],
)
@pytest.mark.parametrize("status", ["429 Slow Down", "503 Busy", "502 Bad Gateway", "500 Oh"])
async def test_an_error_says_when_to_try_again(
    status: str, header: str, expected: float | None
) -> None:
    answer = f"HTTP/1.1 {status}\r\n{header}\r\nContent-Length: 4\r\n\r\nbusy".encode()
    async with raw_server(answer) as url, connected(url) as transport:
        with pytest.raises(ResponseError) as caught:
            await transport.request("POST", "/api/embed", EMBED, timeout=5)
        assert caught.value.retry_after == expected


async def test_a_date_to_try_again_is_compared_with_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 784111777.0)
    answer = (
        b"HTTP/1.1 503 Busy\r\nRetry-After: Sun, 06 Nov 1994 08:49:42 GMT\r\n"
        b"Content-Length: 4\r\n\r\nbusy"
    )
    async with raw_server(answer) as url, connected(url) as transport:
        with pytest.raises(ResponseError) as caught:
            await transport.request("POST", "/api/embed", EMBED, timeout=5)
        assert caught.value.retry_after == 5.0


async def test_an_error_names_the_address_to_write_instead() -> None:
    moved = b"HTTP/1.1 301 Moved\r\nLocation: https://o.example/x\r\nContent-Length: 0\r\n\r\n"
    async with raw_server(moved) as url, connected(url) as transport:
        with pytest.raises(ProtocolError, match=r"https://o\.example: write that"):
            await transport.request("POST", "/x", timeout=5)
    async with raw_server(http("404 Not Found", b"404 page not found")) as url:
        for suffix in ("/v1", "/api", "/v1/"):
            async with connected(url + suffix) as transport:
                with pytest.raises(ResponseError, match=f"write {url} instead"):
                    await transport.request("POST", "/x", timeout=5)
                with pytest.raises(ResponseError, match=f"write {url} instead"):
                    async with transport.stream("/x", b"{}", timeout=5):
                        pass


@pytest.mark.parametrize(
    ("path", "kind"), [("/api/chat", BadRequest), ("/api/embed", RunnerFailed)]
)
async def test_an_unknown_400_depends_on_the_endpoint(path: str, kind: type[NodeError]) -> None:
    answer = http("400 Bad Request", b'{"error":"something new"}')
    async with raw_server(answer) as url, connected(f"{url}/prefix") as transport:
        with pytest.raises(kind):
            await transport.request("POST", path, b"{}", timeout=5)
        with pytest.raises(kind):
            async with transport.stream(path, b"{}", timeout=5):
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
