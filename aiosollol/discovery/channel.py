"""Bytes over a connected socket, plain or by TLS, that ends at once when the socket is closed.

Streams and transports close a socket some turns of the loop later; a search that is cancelled
leaves nothing open.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from typing import Protocol

_PIECE = 65536


class Channel(Protocol):
    """A way to one server. Both raise OSError when it breaks."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """What has come; nothing at the end."""
        ...


class PlainChannel:
    """Bytes as they are."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._sock, _PIECE)


class TlsChannel:
    """Bytes by TLS. `shake_hands` comes first.

    fingerprint: SHA-256 of the server's certificate in DER, 64 hexadecimal digits; "" before.
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
    """For servers that are trusted by their fingerprint, whoever signed their certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def verifying_context() -> ssl.SSLContext:
    """For servers whose certificate somebody signed whom this system trusts."""
    return await asyncio.to_thread(ssl.create_default_context)  # it reads files
