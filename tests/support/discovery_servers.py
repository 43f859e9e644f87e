"""Servers on loopback for discovery tests: minimal Ollamas, and other or broken servers."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

Behaviour: TypeAlias = Callable[["Peer"], Awaitable[None]]

# For 127.0.0.1 and localhost, self-signed, valid until 2126. Used only by tests.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBpTCCAUugAwIBAgIUXo4zOQ5upRkiokIKSZH02ALhQEgwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOYWlvc29sbG9sIHRlc3QwIBcNMjYxMTIxMTIzODM1WhgPMjEy
NjEwMjgxMjM4MzVaMBkxFzAVBgNVBAMMDmFpb3NvbGxvbCB0ZXN0MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEnzu5oqOSCHhQTyGzMFUzYebtNt0OxazA1TpJM97K
oVknQHa2UDu98JRfuszXRm7Akmq3d8cdZikqiK2h/HV5oaNvMG0wHQYDVR0OBBYE
FOJzzRed+wSc9dgXvZNBAQgG1ZzrMB8GA1UdIwQYMBaAFOJzzRed+wSc9dgXvZNB
AQgG1ZzrMA8GA1UdEwEB/wQFMAMBAf8wGgYDVR0RBBMwEYcEfwAAAYIJbG9jYWxo
b3N0MAoGCCqGSM49BAMCA0gAMEUCIHkAr9m4O5ttYWdS57n/pFN3Mo2pnDMoyzw+
FyDfaMk7AiEAk/IQhlT5fvblo7NGfK/rOpZiBLn0oF+FEPjKLNVwTzw=
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgUiDAU1hAl7QQzZPN
Y/WAnfB5WbaYuyyo1Hp9knMo1DahRANCAASfO7mio5IIeFBPIbMwVTNh5u023Q7F
rMDVOkkz3sqhWSdAdrZQO73wlF+6zNdGbsCSard3xx1mKSqIraH8dXmh
-----END PRIVATE KEY-----
"""
FINGERPRINT = "3348d6f26b92af41fed9c7529e30b94e0d3a363cd61f8d8e736272aea828dbcb"


@dataclass
class Server:
    """A running server. heads: of the requests it received."""

    host: str
    port: int
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Peer:
    """One connection, passed to a behaviour."""

    server: Server
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> str:
        """The path of the next request. Raises IncompleteReadError if there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.server.heads.append(head)
        return head.split()[1].decode()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, status: int = 200, more: str = "") -> None:
        head = f"HTTP/1.1 {status} OK\r\nContent-Length: {len(body)}\r\n{more}\r\n"
        await self.send(head.encode() + body)

    async def wait_for_end(self) -> None:
        await self.reader.read()


@asynccontextmanager
async def serving(
    behave: Behaviour, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server that handles each connection with one behaviour, until the block ends."""
    tasks: set[asyncio.Task[None]] = set()

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        server.connections += 1
        server.open += 1
        server.changed.set()
        try:
            await behave(Peer(server, reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.transport.abort()
            tasks.discard(task)
            server.open -= 1
            server.changed.set()

    listener = await asyncio.start_server(treat, host, port, ssl=tls, backlog=300)
    server = Server(host, listener.sockets[0].getsockname()[1])
    try:
        yield server
    finally:
        listener.close()
        for task in tuple(tasks):
            task.cancel()
        while tasks:
            await asyncio.sleep(0)


def free_port(hosts: Sequence[str]) -> int:
    """A port that is free on all of the hosts."""
    for _ in range(100):
        with socket.socket() as first:
            first.bind((hosts[0], 0))
            port: int = first.getsockname()[1]
            if all(_is_free(host, port) for host in hosts[1:]):
                return port
    raise AssertionError("no port is free on all of them")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def server_tls(folder: Path) -> ssl.SSLContext:
    """The TLS context of a server with `CERTIFICATE`."""
    (folder / "cert.pem").write_text(CERTIFICATE)
    (folder / "key.pem").write_text(KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def tags(*models: str, digest: str = "d") -> bytes:
    return json.dumps({"models": [{"name": m, "digest": digest} for m in models]}).encode()


def ollama(
    version: str = "0.33.0", models: Sequence[str] = ("all-minilm",), *, closes: bool = False
) -> Behaviour:
    """Answers like Ollama; with `closes`, one request per connection."""

    async def behave(peer: Peer) -> None:
        while True:
            path = await peer.request()
            body = tags(*models)
            if path.endswith("/api/version"):
                body = json.dumps({"version": version}).encode()
            await peer.answer(body, more="Connection: close\r\n" if closes else "")
            if closes:
                return

    return behave


def saying(version: bytes, listing: bytes = b"", status: int = 200) -> Behaviour:
    """Answers with these bodies."""

    async def behave(peer: Peer) -> None:
        while True:
            path = await peer.request()
            await peer.answer(version if path == "/api/version" else listing, status)

    return behave


async def silent(peer: Peer) -> None:
    await peer.wait_for_end()


async def closing(peer: Peer) -> None:
    pass


async def garbage(peer: Peer) -> None:
    await peer.send(bytes(range(256)) * 8)
    await peer.wait_for_end()


async def ssh(peer: Peer) -> None:
    await peer.send(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    await peer.wait_for_end()


async def html(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.answer(b"<!doctype html><title>A printer</title>")


async def stuttering(peer: Peer) -> None:
    """Begins like Ollama, byte by byte, and never ends."""
    await peer.request()
    for byte in b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"version":':
        await peer.send(bytes([byte]))
    await peer.wait_for_end()


async def endless_body(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await peer.send(b" " * 65536)


async def endless_chunks(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await peer.send(b"10000\r\n" + b" " * 65536 + b"\r\n")


async def endless_head(peer: Peer) -> None:
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        await peer.send(b"X-%d: %b\r\n" % (number, b"x" * 1000))


async def endless_interim(peer: Peer) -> None:
    await peer.request()
    while True:
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 50)


async def endless_tags(peer: Peer) -> None:
    await peer.request()
    await peer.answer(b'{"version": "0.33.0"}')
    await peer.request()
    await peer.send(b'HTTP/1.1 200 OK\r\n\r\n{"models": [')
    while True:
        await peer.send(b'{"name": "x"},' * 4096)


def redirecting(to: str) -> Behaviour:
    async def behave(peer: Peer) -> None:
        while True:
            path = await peer.request()
            await peer.answer(b"", 302, more=f"Location: {to}{path}\r\n")

    return behave


_VERSION = b'{"version": "0.33.0"}'

PROMPTLY_WRONG: dict[str, Behaviour] = {
    "closes at once": closing,
    "garbage": garbage,
    "ssh": ssh,
    "HTML": html,
    "an endless body": endless_body,
    "endless chunks": endless_chunks,
    "an endless head": endless_head,
    "endless interim answers": endless_interim,
    "endless tags": endless_tags,
    "another API": saying(b"{}"),
    "a version that is a number": saying(b'{"version": 1}'),
    "tags that are missing": saying(_VERSION, b'{"error": "no"}'),
    "not found": saying(b"404 page not found", status=404),
    "not allowed": saying(b'{"error": "unauthorized"}', status=401),
}
"""Servers that are recognisably not Ollama."""

NEVER_DONE: dict[str, Behaviour] = {"silent": silent, "stuttering": stuttering}
"""Servers that are not Ollama, detected only by a deadline."""


def every_wrong() -> Iterator[tuple[str, Behaviour]]:
    yield from PROMPTLY_WRONG.items()
    yield from NEVER_DONE.items()
