"""`HttpTransport`: one aiohttp session to one node. Foreign exceptions become ours here."""

from __future__ import annotations

import asyncio
import io
from types import TracebackType
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from aiosollol.deadlines import Deadlines
from aiosollol.errors import (
    ConnectionLost,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    ProtocolError,
)
from aiosollol.wire.ollama import error_for

if TYPE_CHECKING:
    from aiosollol.core.node import NodeSpec

CONNECT_SECONDS = 5.0
"""How long a connection may take. A host that is off drops packets; it must not cost a minute."""

_MAX_ERROR_BYTES = 65_536
_LARGE_BYTES = 1 << 20
_KEEPALIVE_SECONDS = 60.0
_DNS_SECONDS = 60


class HttpTransport:
    """The way to one node over HTTP/1.1. Connections are kept alive and reused.

    The session is made with the first request, so an instance may be made outside the event loop.
    """

    def __init__(self, spec: NodeSpec) -> None:
        self._node = spec.name
        self._base = spec.url
        self._headers = {"Content-Type": "application/json", **spec.headers}
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False
        # What is made from a path once need not be made for every request.
        self._urls: dict[str, URL] = {}
        self._deadlines = Deadlines()

    def __repr__(self) -> str:
        return f"<HttpTransport {self._node} {self._base}>"

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> bytes:
        """See `Transport.request`."""
        retries = 1
        while True:
            try:
                with self._deadlines.within(timeout):
                    async with self._open().request(
                        method, self._url(path), data=_as_data(body), allow_redirects=False
                    ) as response:
                        answer = await response.read()
                break
            except aiohttp.ServerDisconnectedError as error:
                # The server closed an idle connection as we were about to reuse it. aiohttp retries
                # a GET by itself; nothing that we POST has side effects either.
                if not retries:
                    raise self._ours(error, timeout) from error
                retries -= 1
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise self._ours(error, timeout) from error
        if response.status != 200:
            raise error_for(self._node, response.status, answer)
        return answer

    def stream(self, path: str, body: bytes, *, timeout: float) -> _Pieces:
        """See `Transport.stream`."""
        return _Pieces(self, path, body, timeout)

    async def _start(self, path: str, body: bytes, timeout: float) -> aiohttp.ClientResponse:
        try:
            response = await self._open().request(
                "POST",
                self._url(path),
                data=_as_data(body),
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._ours(error, timeout) from error
        if response.status == 200:
            return response
        try:
            raise error_for(self._node, response.status, await self._error_body(response))
        finally:
            response.close()

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.content.read(_MAX_ERROR_BYTES)
        except (aiohttp.ClientError, OSError):
            return b""

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        self._is_closed = True
        self._deadlines.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._is_closed:
            raise NodeUnreachable(self._node, "the transport is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # the pool bounds what is under way, by what the node can take
                    ttl_dns_cache=_DNS_SECONDS,
                    keepalive_timeout=_KEEPALIVE_SECONDS,
                ),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = URL(self._base + path)
        return url

    def _ours(self, error: Exception, timeout: float) -> NodeError:
        node = self._node
        if isinstance(error, NodeError):
            return error
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return NodeUnreachable(node, f"no connection within {CONNECT_SECONDS:g} s")
        if isinstance(error, asyncio.TimeoutError):
            return NodeTimeout(node, f"no answer within {timeout:g} s")
        if isinstance(error, aiohttp.ClientConnectorError):
            return NodeUnreachable(node, f"no connection: {_in_words(error)}")
        if isinstance(error, aiohttp.ClientResponseError):  # what came back is not HTTP
            return ProtocolError(node, f"does not speak HTTP: {error.message.splitlines()[0]}")
        if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
            return ConnectionLost(node, f"the connection broke: {error or type(error).__name__}")
        return ProtocolError(node, f"{type(error).__name__}: {error}")


class _Pieces:
    """A streamed answer: a context manager, and the iterator over its pieces that it gives.

    A class and not a generator in a generator: those cost more per piece than reading it does.
    """

    __slots__ = ("_body", "_path", "_response", "_timeout", "_transport")

    def __init__(self, transport: HttpTransport, path: str, body: bytes, timeout: float) -> None:
        self._transport = transport
        self._path = path
        self._body = body
        self._timeout = timeout
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> _Pieces:
        self._response = await self._transport._start(self._path, self._body, self._timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Idempotent: a body that was read to its end has given its connection back already;
        # one that was not is closed with it, which is what cancels the work on the node.
        if self._response is not None:
            self._response.close()

    def __del__(self) -> None:
        if self._response is not None:
            self._response.close()

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        assert self._response is not None
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._transport._ours(error, self._timeout) from error
        if not piece:
            raise StopAsyncIteration
        return piece


def _in_words(error: aiohttp.ClientConnectorError) -> str:
    """Why there is no connection, with what to do about it where the reason is a usual one."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({error.certificate_error})"
    if "WRONG_VERSION_NUMBER" in str(error):
        return "it does not speak https; is it http://?"
    return str(error.os_error or error)


def _as_data(body: bytes | None) -> bytes | io.BytesIO | None:
    """What aiohttp should send: large bodies piece by piece, so that others get their turn."""
    return io.BytesIO(body) if body is not None and len(body) > _LARGE_BYTES else body
