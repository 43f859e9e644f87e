"""`HttpTransport`: requests to one node over HTTP/1.1, with failures mapped to our errors."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiosollol.errors import (
    ConnectionLost,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    ProtocolError,
)
from aiosollol.net.connection import SLICE_BYTES, Closed, Connection, ConnectionPool
from aiosollol.net.connector import Connector
from aiosollol.net.http_exchange import HttpExchange, Late
from aiosollol.net.primitives import Deadlines
from aiosollol.wire.http1 import header_lines, request_head
from aiosollol.wire.ollama.address_hints import address_hint
from aiosollol.wire.ollama.client import error_for
from aiosollol.wire.retry_after import read_retry_after

if TYPE_CHECKING:
    from aiosollol.core.address import Address
    from aiosollol.core.node import NodeSpec

CONNECT_SECONDS = 5.0
"""Connect timeout. A host that is off drops packets, which must not cost a minute."""

_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # where there is none, a proxy may compress
    "Content-Type": "application/json",
    "User-Agent": "aiosollol",
}
_SCHEME_PORTS = {"http": 80, "https": 443}
_URL_CHARACTERS = "/?%:@!$&'()*+,;=~"


class HttpTransport:
    """Requests to one node over HTTP/1.1. Connections are kept alive and reused.

    They are opened on demand, so an instance may be created outside the event loop.
    """

    def __init__(self, spec: NodeSpec) -> None:
        self._node = spec.name
        self._base = spec.url
        given = {name.lower() for name in spec.headers}
        ours = {name: value for name, value in _HEADERS.items() if name.lower() not in given}
        self._headers = {**ours, **spec.headers}
        self._host = _host_field(spec.address)
        self._prefix = spec.address.path
        self._connections = ConnectionPool(Connector(spec.address, spec.fingerprint))
        self._deadlines = Deadlines()
        # (method, path) -> request head, built once.
        self._heads: dict[tuple[str, str], bytes] = {}

    def __repr__(self) -> str:
        return f"<HttpTransport {self._node} {self._base}>"

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> bytes:
        """See `Transport.request`."""
        exchange = await self._start(method, path, body, timeout, headers, most, is_streamed=False)
        if exchange.status == 200 and exchange.error is None:
            return exchange.read()
        raise self._failure(exchange, path, timeout) from exchange.error

    def stream(
        self,
        path: str,
        body: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        stall_timeout: float = math.inf,
    ) -> _Pieces:
        """See `Transport.stream`."""
        return _Pieces(self, path, body, timeout, headers, stall_timeout)

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        self._deadlines.close()
        await self._connections.aclose()

    async def _start(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout: float,
        headers: Mapping[str, str] | None,
        most: int | None = None,
        *,
        is_streamed: bool,
    ) -> HttpExchange:
        """Send a request. Returns when the exchange is over, or a stream has status 200."""
        at = time.monotonic() + timeout
        head = self._heads.get((method, path)) or self._make_head(method, path)
        if headers:
            head += self._lines_of(headers)
        if body is not None or method == "POST":
            body = body or b""
            head = b"%bContent-Length: %d\r\n" % (head, len(body))
        connection = self._connections.take()
        while True:
            if connection is None:
                connection = await self._connect(at, timeout)
            exchange = connection.begin(at, is_streamed=is_streamed)
            if most is not None:
                exchange.most = most
            self._deadlines.add(exchange)
            try:
                if body is None or len(body) <= SLICE_BYTES:
                    connection.send(b"%b\r\n%b" % (head, body or b""))
                else:
                    await connection.send_large(head + b"\r\n", body)
                while not exchange.is_over and not (is_streamed and exchange.status == 200):
                    await exchange.changed()
            except BaseException:
                self._end(exchange)
                raise
            if exchange.is_over:
                self._deadlines.discard(exchange)
                if exchange.was_in_vain:
                    connection = None
                    continue
            return exchange

    def _wait_until(self, exchange: HttpExchange, at: float) -> None:
        """Change the deadline of an exchange."""
        exchange.at = at
        self._deadlines.add(exchange)

    def _end(self, exchange: HttpExchange) -> None:
        """Abandon the exchange: unless it is over, close its connection.

        That cancels the work on the node.
        """
        self._deadlines.discard(exchange)
        exchange.fail(ConnectionAbortedError("the request was abandoned"))

    def _make_head(self, method: str, path: str) -> bytes:
        """The head of requests to `path`, without Content-Length and the final empty line."""
        target = quote(self._prefix + path, safe=_URL_CHARACTERS)
        try:
            head = request_head(method, self._host, target, self._headers, None)[:-2]
        except ValueError as error:
            raise ProtocolError(self._node, f"cannot be asked: {error}") from error
        self._heads[method, path] = head
        return head

    def _lines_of(self, headers: Mapping[str, str]) -> bytes:
        """The header lines of one request, without those that every request has."""
        own = {name.lower() for name in self._headers}
        more = {name: value for name, value in headers.items() if name.lower() not in own}
        try:
            return "".join(f"{line}\r\n" for line in header_lines(more)).encode()
        except ValueError as error:
            raise ProtocolError(self._node, f"cannot be asked: {error}") from error

    async def _connect(self, at: float, timeout: float) -> Connection:
        seconds = at - time.monotonic()
        try:
            return await self._connections.make(min(seconds, CONNECT_SECONDS))
        except Closed as error:
            raise NodeUnreachable(self._node, "the transport is closed") from error
        except TimeoutError as error:
            if seconds < CONNECT_SECONDS:
                raise self._late(timeout) from error
            detail = f"no connection within {CONNECT_SECONDS:g} s"
            raise NodeUnreachable(self._node, detail) from error
        except (OSError, ValueError) as error:
            raise NodeUnreachable(self._node, f"no connection: {_in_words(error)}") from error

    def _failure(self, exchange: HttpExchange, path: str, timeout: float) -> NodeError:
        """The error for a failed exchange: by its status, if there is one."""
        status = exchange.status
        if status in (0, 200):
            assert exchange.error is not None
            return self._ours(exchange.error, timeout)
        body = b""
        with contextlib.suppress(OSError, ValueError, Late):
            body = exchange.read()
        headers = exchange.headers
        return error_for(
            self._node,
            status,
            body,
            path=path,
            retry_after=read_retry_after(headers.get("retry-after", ""), time.time()),
            hint=address_hint(self._base, path, status, headers.get("location", "")),
        )

    def _ours(self, error: Exception, timeout: float) -> NodeError:
        if isinstance(error, Late):
            return self._late(timeout)
        if isinstance(error, OSError):
            detail = f"the connection broke: {error or type(error).__name__}"
            return ConnectionLost(self._node, detail)
        hint = "; it speaks TLS, is it https://?" if "\\x15\\x03" in str(error) else ""
        return ProtocolError(self._node, f"does not speak HTTP: {error}{hint}")

    def _late(self, timeout: float, *, is_stalled: bool = False) -> NodeTimeout:
        if is_stalled:
            return NodeTimeout(self._node, f"sent nothing for {timeout:g} s (see stall_timeout)")
        return NodeTimeout(self._node, f"no answer within {timeout:g} s")


class _Pieces:
    """A streamed answer: a context manager that gives an iterator over its pieces.

    A class, because nested generators cost more per piece than reading it.
    """

    __slots__ = (
        "_body",
        "_ends_at",
        "_exchange",
        "_headers",
        "_path",
        "_stall_timeout",
        "_timeout",
        "_transport",
    )

    def __init__(
        self,
        transport: HttpTransport,
        path: str,
        body: bytes,
        timeout: float,
        headers: Mapping[str, str] | None,
        stall_timeout: float,
    ) -> None:
        self._transport = transport
        self._path = path
        self._body = body
        self._timeout = timeout
        self._headers = headers
        self._stall_timeout = stall_timeout
        self._ends_at = 0.0  # 0 before the first piece
        self._exchange: HttpExchange | None = None

    async def __aenter__(self) -> _Pieces:
        transport, timeout = self._transport, self._timeout
        exchange = await transport._start(
            "POST", self._path, self._body, timeout, self._headers, is_streamed=True
        )
        if exchange.status != 200:
            raise transport._failure(exchange, self._path, timeout) from exchange.error
        self._exchange = exchange
        return self

    async def __aexit__(self, *_: object) -> None:
        # Idempotent: a body read to its end has returned its connection already.
        if self._exchange is not None:
            self._transport._end(self._exchange)

    def __del__(self) -> None:
        if self._exchange is not None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed
                self._transport._end(self._exchange)

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        exchange = self._exchange
        assert exchange is not None
        if self._ends_at and not exchange.is_readable:
            at = min(self._ends_at, time.monotonic() + self._stall_timeout)
            self._transport._wait_until(exchange, at)
        while not exchange.is_readable:
            await exchange.changed()
        try:
            piece = exchange.read()
        except Late as error:
            is_stalled = exchange.at < (self._ends_at or exchange.at)
            raise self._transport._late(
                self._stall_timeout if is_stalled else self._timeout, is_stalled=is_stalled
            ) from error
        except (OSError, ValueError) as error:
            raise self._transport._ours(error, self._timeout) from error
        if not piece:
            raise StopAsyncIteration
        if self._ends_at:
            exchange.at = self._ends_at  # the reader may take its time
        else:
            self._ends_at = exchange.at
        return piece


def _host_field(address: Address) -> str:
    """The value of the Host header: without the port if it is the scheme's default."""
    host, _, _ = address.host.partition("%")
    if ":" in host:
        host = f"[{host}]"
    return host if address.port == _SCHEME_PORTS[address.scheme] else f"{host}:{address.port}"


def _in_words(error: Exception) -> str:
    """Why there is no connection, with a hint for common reasons."""
    untrusted = getattr(error, "verify_message", "")
    if untrusted:
        return f"its certificate is not trusted ({untrusted})"
    if any(sign in str(error) for sign in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")):
        return "it does not speak https; is it http://?"
    return str(error) or type(error).__name__
