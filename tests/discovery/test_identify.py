"""Is it an Ollama? Answers from memory, and a TLS server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from discovery_servers import (
    CERTIFICATE,
    FINGERPRINT,
    Peer,
    closing,
    ollama,
    server_tls,
    serving,
    tags,
)

from aiosollol.core.address import Address
from aiosollol.discovery.prober import MOST_BODY_BYTES, ServerIdentity, identify
from aiosollol.discovery.sockets import PlainChannel, TlsChannel, connect, pinning_context
from aiosollol.errors import NodeError
from aiosollol.wire.http1 import BadResponse

pytestmark = pytest.mark.anyio

ADDRESS = Address.parse("10.0.0.7:11434")
VERSION = b'{"version": "0.33.0"}'


class Script:
    """Connections on which each request is answered by the next of the pieces, then by an end.

    `sent` has what was sent, by connection.
    """

    def __init__(self, *connections: Iterable[bytes]) -> None:
        self._connections = iter(connections)
        self.sent: list[list[bytes]] = []

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Script]:
        self._pieces = iter(next(self._connections))
        self.sent.append([])
        yield self

    async def send(self, data: bytes) -> None:
        self.sent[-1].append(data)

    async def receive(self) -> bytes:
        await asyncio.sleep(0)
        return next(self._pieces, b"")


def reply(body: bytes, status: int = 200, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


async def ask(*pieces: bytes) -> ServerIdentity:
    return await identify(Script(pieces).connect, ADDRESS)


async def test_an_ollama_is_asked_twice_on_one_connection() -> None:
    script = Script([reply(VERSION), reply(tags("all-minilm", "llama3.2:1b"))])
    answer = await identify(script.connect, ADDRESS)
    assert answer.version == "0.33.0"
    assert list(answer.models) == ["all-minilm:latest", "llama3.2:1b"]
    assert 0 <= answer.seconds < 10
    ((first, second),) = script.sent
    assert first.startswith(b"GET /api/version HTTP/1.1\r\nHost: 10.0.0.7:11434\r\n")
    assert second.startswith(b"GET /api/tags HTTP/1.1\r\nHost: 10.0.0.7:11434\r\n")


async def test_a_path_is_kept() -> None:
    script = Script([reply(VERSION), reply(tags())])
    await identify(script.connect, Address.parse("http://box/ollama"))
    assert script.sent[0][0].startswith(b"GET /ollama/api/version HTTP/1.1\r\nHost: box:80\r\n")


async def test_answers_in_small_pieces() -> None:
    whole = reply(VERSION) + b""
    pieces = [bytes([byte]) for byte in whole]
    assert (await ask(*pieces, reply(tags()))).version == "0.33.0"


@pytest.mark.parametrize("listing", [b'{"models": null}', b'{"models": []}'])
async def test_an_ollama_without_models(listing: bytes) -> None:
    assert (await ask(reply(VERSION), reply(listing))).models == {}


async def test_a_server_that_closes_is_asked_on_two_connections() -> None:
    closing = "Connection: close\r\n"
    script = Script([reply(VERSION, more=closing)], [reply(tags("m"), more=closing)])
    assert list((await identify(script.connect, ADDRESS)).models) == ["m:latest"]
    assert len(script.sent) == 2


async def test_what_is_a_little_more_than_usual_is_taken() -> None:
    listing = tags("m").rstrip(b"}") + b', "more": "' + b"x" * (MOST_BODY_BYTES - 200) + b'"}'
    assert len(listing) < MOST_BODY_BYTES
    assert list((await ask(reply(VERSION), reply(listing))).models) == ["m:latest"]


async def test_a_server_behind_a_proxy_that_compresses() -> None:
    def packed(body: bytes, data: bytes | None = None) -> bytes:
        return reply(
            gzip.compress(body) if data is None else data, more="Content-Encoding: gzip\r\n"
        )

    answer = await ask(packed(VERSION), packed(tags("m")))
    assert list(answer.models) == ["m:latest"]
    for data in (gzip.compress(VERSION)[:-4], VERSION, gzip.compress(bytes(50_000_000))):
        with pytest.raises((ValueError, NodeError)):
            await ask(packed(b"", data))


NO_VERSION = [
    b"",
    b"null",
    b"[]",
    b'"0.33.0"',
    b"{}",
    b'{"version": 1}',
    b'{"version": null}',
    b'{"version": ""}',
    b'{"version": "\\u001b[31mred"}',
    b'{"version": "\\u202e0.33"}',
    b'{"version": "%b"}' % (b"9" * 101),
    b'{"version": "0.33.0"',
    b"<html>",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"version":' * 50_000,
]
NO_TAGS = [
    b"",
    b"[]",
    b"{}",
    b'{"models": {}}',
    b'{"models": "all"}',
    b'{"models": 3}',
    b'{"models": ["all-minilm"]}',
    b'{"models": [null]}',
    b'{"models": [{}]}',
    b'{"models": [{"name": 3}]}',
    b'{"models": [{"name": ""}]}',
    b'{"models": [{"name": "a\\nb"}]}',
    b'{"models": [{"name": "m"}, 1]}',
    b'{"models": [{"name": "%b"}]}' % (b"m" * 513),
    b'{"models": [',
    b'{"error": "no"}',
    VERSION,
]


@pytest.mark.parametrize("body", NO_VERSION)
async def test_versions_that_are_none(body: bytes) -> None:
    with pytest.raises(NodeError, match=r"10\.0\.0\.7"):
        await ask(reply(body), reply(tags("m")))


@pytest.mark.parametrize("body", NO_TAGS)
async def test_lists_of_models_that_are_none(body: bytes) -> None:
    with pytest.raises(NodeError, match=r"10\.0\.0\.7"):
        await ask(reply(VERSION), reply(body))


@pytest.mark.parametrize("status", [201, 204, 301, 302, 307, 400, 401, 403, 404, 500, 503])
async def test_other_statuses(status: int) -> None:
    more = "Location: http://10.0.0.8:11434/api/version\r\n"
    script = Script([reply(VERSION, status, more), reply(tags("m"))])
    with pytest.raises(NodeError, match=f"status {status}"):
        await identify(script.connect, ADDRESS)
    assert len(script.sent) == 1
    assert len(script.sent[0]) == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b"SSH-2.0-OpenSSH\r\n"],
        [b"\x00\x01"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"],
        [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000],
        [b"HTTP/1.1 102 Processing\r\n\r\n"] * 5000,
    ],
)
async def test_what_is_not_http(pieces: list[bytes]) -> None:
    with pytest.raises(BadResponse):
        await ask(*pieces)


@pytest.mark.parametrize("head", [b"", b"Content-Length: 99999999\r\n"])
async def test_a_body_that_does_not_end_is_given_up(head: bytes) -> None:
    pieces = [b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", *[b" " * 65536] * 100]
    received = iter(pieces)
    with pytest.raises(NodeError, match="more than a megabyte"):
        await identify(Script(received).connect, ADDRESS)
    assert len(list(received)) > 80  # unread


# ---- over TLS


@asynccontextmanager
async def tls(port: int, context: ssl.SSLContext) -> AsyncIterator[TlsChannel]:
    with await connect("127.0.0.1", port) as sock:
        channel = TlsChannel(sock, context, "127.0.0.1")
        await channel.shake_hands()
        yield channel


async def test_tls_with_a_certificate_that_is_pinned(tmp_path: Path) -> None:
    fingerprints: list[str] = []

    @asynccontextmanager
    async def pinned() -> AsyncIterator[TlsChannel]:
        async with tls(server.port, pinning_context()) as channel:
            fingerprints.append(channel.fingerprint)
            yield channel

    many = [f"model-{number}" for number in range(5000)]  # more than one TLS record
    async with serving(ollama(models=many), tls=server_tls(tmp_path)) as server:
        answer = await identify(pinned, Address("https", "127.0.0.1", server.port))
        await server.until(lambda: server.open == 0)
    assert len(answer.models) == 5000
    assert fingerprints == [FINGERPRINT]


async def test_tls_with_a_certificate_that_is_signed(tmp_path: Path) -> None:
    context = ssl.create_default_context(cadata=CERTIFICATE)
    async with serving(ollama(), tls=server_tls(tmp_path)) as server:
        address = Address("https", "127.0.0.1", server.port)
        answer = await identify(lambda: tls(server.port, context), address)
        assert answer.version == "0.33.0"
        with pytest.raises(ssl.SSLCertVerificationError):
            async with tls(server.port, ssl.create_default_context(cadata="")):
                pass


async def test_who_does_not_speak_tls() -> None:
    async def bad_request(peer: Peer) -> None:  # as Go's servers answer
        await peer.reader.read(100)
        await peer.answer(b"Client sent an HTTPS request to an HTTP server.", 400)

    async with serving(bad_request) as server:
        with pytest.raises(ssl.SSLError):
            async with tls(server.port, pinning_context()):
                pass


async def test_a_tls_server_that_breaks_off(tmp_path: Path) -> None:
    async with serving(closing, tls=server_tls(tmp_path)) as server:
        with pytest.raises(OSError, match=r"EOF|reset"):
            async with tls(server.port, pinning_context()) as channel:
                await channel.receive()


async def test_a_tls_server_that_ends_as_it_should(tmp_path: Path) -> None:
    async def bye(peer: Peer) -> None:
        peer.writer.close()
        await peer.writer.wait_closed()

    async with (
        serving(bye, tls=server_tls(tmp_path)) as server,
        tls(server.port, pinning_context()) as channel,
    ):
        assert await channel.receive() == b""


async def test_a_plain_channel_sends_and_receives() -> None:
    async with serving(ollama()) as server:
        with await connect("127.0.0.1", server.port) as sock:
            channel = PlainChannel(sock)
            await channel.send(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"0.33.0" in await channel.receive()
