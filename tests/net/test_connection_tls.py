"""Connections with TLS: whom they trust."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from connection_servers import (
    FOREVER,
    HEAD,
    Names,
    asked,
    connections_to,
    http,
    polite,
    served,
    turns,
    until,
)

from aiosollol.core.node import NodeSpec
from aiosollol.errors import NodeUnreachable
from aiosollol.net import connector
from aiosollol.net.connector import WrongCertificate
from aiosollol.net.transport import HttpTransport

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


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
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names that there are."""
    return Names(monkeypatch)


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
    monkeypatch.setattr(connector, "_trusting_authorities", certificate.trust)
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
    monkeypatch.setattr(connector, "_trusting_authorities", certificate.trust)
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

    monkeypatch.setattr(connector, "_trusting_authorities", certificate.trust)
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
    monkeypatch.setattr(connector, "_trusting_authorities", certificate.trust)
    monkeypatch.setattr(connector, "_GOODBYE_SECONDS", 0.01)

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
    monkeypatch.setattr(connector, "_trusting_authorities", certificate.trust)
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
