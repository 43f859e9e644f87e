"""`HttpTransport` over real sockets: its requests, its streams, and their end."""

from __future__ import annotations

import pytest
from transport_servers import EMBED, connected, recording

from aiosollol.core.node import NodeSpec
from aiosollol.errors import (
    ProtocolError,
)
from aiosollol.net.transport import HttpTransport
from aiosollol.testing import FakeOllama
from aiosollol.wire.ollama.client import load

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


async def test_a_request_returns_the_body() -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        body = await transport.request("POST", "/api/embed", EMBED, timeout=5)
        assert len(load("node", body)["embeddings"]) == 1


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
    ours = b"Host: %b\r\nAccept: */*\r\nAccept-Encoding: identity\r\n" % host
    common = ours + b"Content-Type: application/json\r\nUser-Agent: aiosollol\r\n"
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


@pytest.mark.parametrize(("most", "fits"), [(None, True), (10_000, True), (100, False)])
async def test_an_answer_has_at_most_so_many_bytes(most: int | None, fits: bool) -> None:
    async with FakeOllama() as fake, connected(fake.url) as transport:
        asking = transport.request("POST", "/api/embed", EMBED, timeout=5, most=most)
        if fits:
            assert len(await asking) > 100
        else:
            with pytest.raises(ProtocolError, match="longer than 100 bytes"):
                await asking
