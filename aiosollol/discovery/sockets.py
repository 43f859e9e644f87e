"""Sockets for a search: many concurrent connections, below a limit."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from ipaddress import ip_address
from typing import Protocol

_KEPT = 2
"""Sockets reserved for nodes that were given or announced. The remaining 254 are enough to probe a
/24, without its network and broadcast addresses, all at once."""


class Sockets:
    """A limit on open sockets: ``async with sockets`` holds one.

    open_at_most: the most sockets open at once so far.
    limit: `most`, or a third of this process's file limit if that is less.
    """

    def __init__(self, most: int) -> None:
        self.limit = max(1, min(most, _file_limit() // 3))
        self.open_at_most = 0
        self._held = 0
        self._free = asyncio.Semaphore(self.limit)
        self._free_for_sweep = asyncio.Semaphore(max(1, self.limit - _KEPT))

    async def begin_sweeping(self) -> None:
        """Wait until the sweep may probe another address. `end_sweeping` gives the place back."""
        await self._free_for_sweep.acquire()

    def end_sweeping(self) -> None:
        self._free_for_sweep.release()

    async def __aenter__(self) -> None:
        """Wait until another socket may be opened, and reserve it."""
        await self._free.acquire()
        self._held += 1
        self.open_at_most = max(self.open_at_most, self._held)

    async def __aexit__(self, *_: object) -> None:
        self._held -= 1
        self._free.release()


async def connect(host: str, port: int) -> socket.socket:
    """A socket connected to an IP address; closed on failure or cancellation.

    Raises OSError if there is no connection. The caller sets the deadline, and closes the socket.
    """
    family, address = _socket_address(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The socket address. An IPv6 address may carry an interface: fe80::1%eth0."""
    if ":" not in host:
        return socket.AF_INET, (host, port)
    address, _, zone = host.partition("%")
    scope = 0
    if zone:
        scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return socket.AF_INET6, (str(ip_address(address)), port, 0, scope)


def _file_limit() -> int:
    """How many files and sockets this process may have open; 512 if unknown."""
    try:
        import resource
    except ImportError:  # Windows, where select() is the limit
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


_PIECE = 65536


class Channel(Protocol):
    """A byte stream to one server. Both methods raise OSError when it breaks."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """The bytes that have arrived; empty at the end."""
        ...


class PlainChannel:
    """A stream without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._sock, _PIECE)


class TlsChannel:
    """A stream with TLS. Call `shake_hands` first.

    fingerprint: SHA-256 of the server's certificate in DER, 64 hexadecimal digits; "" before then.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        self._plain = PlainChannel(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.fingerprint = ""

    async def shake_hands(self) -> None:
        """Agree on keys. Raises ssl.SSLError (an OSError) if the certificate is not trusted."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._exchange()
        await self._flush()
        certificate = self._tls.getpeercert(binary_form=True) or b""
        self.fingerprint = hashlib.sha256(certificate).hexdigest()

    async def send(self, data: bytes) -> None:
        self._tls.write(data)  # memory takes all of it
        await self._flush()

    async def receive(self) -> bytes:
        while True:
            try:
                return self._tls.read(_PIECE)
            except ssl.SSLWantReadError:
                await self._exchange()
            except ssl.SSLZeroReturnError:
                return b""

    async def _exchange(self) -> None:
        await self._flush()
        data = await self._plain.receive()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()  # the next step ends, or raises SSLEOFError

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._plain.send(self._outgoing.read())


def pinning_context() -> ssl.SSLContext:
    """For servers that are trusted by fingerprint, whatever the issuer of their certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def verifying_context() -> ssl.SSLContext:
    """For servers whose certificate is signed by an authority that this system trusts."""
    return await asyncio.to_thread(ssl.create_default_context)  # it reads files
