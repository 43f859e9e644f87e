"""Answers that a proxy compresses though nothing but identity was asked for."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest
from connection_servers import served

from aiosollol import OllamaPool
from aiosollol.core.node import NodeSpec
from aiosollol.errors import NodeError, ProtocolError, ResponseError
from aiosollol.net import http_exchange
from aiosollol.net.transport import HttpTransport

pytestmark = pytest.mark.anyio

TEXT = b'{"message":{"content":"hello"},"done":false}\n' * 30_000  # 1.3 MB


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Proxy:
    """Answers every request with one status, body and coding. framing: how the body ends."""

    def __init__(self, body: bytes, coding: str, framing: str = "length", status: int = 200):
        self.body = body
        self.coding = coding
        self.framing = framing
        self.status = status
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
            await reader.readexactly(int(lengths[0].split()[1]) if lengths else 0)
            body = self.body
            out = f"HTTP/1.1 {self.status} X\r\nContent-Encoding: {self.coding}\r\n".encode()
            if self.framing == "length":
                writer.write(b"%bContent-Length: %d\r\n\r\n%b" % (out, len(body), body))
            elif self.framing == "chunked":
                writer.write(out + b"Transfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(body), 1000):
                    piece = body[at : at + 1000]
                    writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
            else:
                writer.write(out + b"\r\n" + body)
                return
            await writer.drain()


def transport_to(port: int) -> HttpTransport:
    return HttpTransport(NodeSpec(f"http://127.0.0.1:{port}", name="node"))


async def whole(transport: HttpTransport) -> bytes:
    return await transport.request("POST", "/x", b"{}", timeout=5)


async def streamed(transport: HttpTransport) -> bytes:
    pieces = []
    async with transport.stream("/x", b"{}", timeout=5) as stream:
        async for piece in stream:
            assert 0 < len(piece) <= 2 * http_exchange._MANY_BYTES
            pieces.append(piece)
    return b"".join(pieces)


CODINGS = {"gzip": gzip.compress(TEXT), "deflate": zlib.compress(TEXT)}


@pytest.mark.parametrize("read", [whole, streamed])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("coding", CODINGS)
async def test_an_answer_is_decoded(coding: str, framing: str, read: object) -> None:
    proxy = Proxy(CODINGS[coding], coding, framing)
    async with served(proxy) as server:
        transport = transport_to(server.port)
        for _ in range(3):
            assert await read(transport) == TEXT  # type: ignore[operator]
        assert server.connections == (3 if framing == "close" else 1)
        await transport.aclose()
    assert all(b"\r\nAccept-Encoding: identity\r\n" in head for head in proxy.heads)


@pytest.mark.parametrize("read", [whole, streamed])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize(
    "body",
    [CODINGS["gzip"][:-5], CODINGS["gzip"][: len(CODINGS["gzip"]) // 2], TEXT, b"<html>"],
    ids=["without its end", "half of it", "plain", "a page"],
)
async def test_an_answer_that_is_not_in_its_coding(body: bytes, framing: str, read: object) -> None:
    async with served(Proxy(body, "gzip", framing)) as server:
        transport = transport_to(server.port)
        with pytest.raises(ProtocolError, match="content"):
            await read(transport)  # type: ignore[operator]
        await transport.aclose()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_an_answer_may_not_be_longer_than_a_plain_one(
    framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_exchange, "MAX_BODY", 1_000_000)
    async with served(Proxy(gzip.compress(bytes(1_000_001)), "gzip", framing)) as server:
        transport = transport_to(server.port)
        with pytest.raises(ProtocolError, match="longer than 1000000 bytes"):
            await whole(transport)
        await transport.aclose()
    async with served(Proxy(gzip.compress(bytes(1_000_000)), "gzip", framing)) as server:
        transport = transport_to(server.port)
        assert await whole(transport) == bytes(1_000_000)
        await transport.aclose()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_stream_is_decoded_as_it_is_read(framing: str) -> None:
    body = gzip.compress(bytes(100_000_000))  # 97 kB
    async with served(Proxy(body, "gzip", framing)) as server:
        transport = transport_to(server.port)
        async with transport.stream("/x", b"{}", timeout=5) as stream:
            size = 0
            async for piece in stream:
                assert stream._exchange is not None
                assert stream._exchange._size <= http_exchange._MANY_BYTES + 1
                size += len(piece)
        assert size == 100_000_000
        await transport.aclose()


async def test_an_error_is_decoded_and_bounded() -> None:
    message = gzip.compress(b'{"error":"the input length exceeds the context length"}')
    async with served(Proxy(message, "gzip", status=400)) as server:
        transport = transport_to(server.port)
        for read in (whole, streamed):
            with pytest.raises(ResponseError, match="input length exceeds"):
                await read(transport)
        await transport.aclose()
    for bad in (gzip.compress(bytes(50_000_000)), b"no gzip"):
        async with served(Proxy(bad, "gzip", status=500)) as server:
            transport = transport_to(server.port)
            with pytest.raises(NodeError) as caught:
                await whole(transport)
            assert len(str(caught.value)) < 300
            await transport.aclose()


async def test_a_pool_works_through_such_a_proxy() -> None:
    body = gzip.compress(b'{"version":"0.12.9","models":[{"name":"m"}],"embeddings":[[0.5,0.25]]}')
    async with (
        served(Proxy(body, "gzip")) as server,
        OllamaPool([f"http://127.0.0.1:{server.port}"]) as pool,
    ):
        assert list(await pool.embed("m", "x")) == [0.5, 0.25]
