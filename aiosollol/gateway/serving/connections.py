"""`ClientConnection`: a client's connection to the gateway, with deadlines and a limit on them all.

aiohttp limits the time that a connection is idle. This module adds limits for a head that arrives a
byte a second, a client that does not read its response, and the number of connections.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson
from aiohttp import web

from aiosollol.errors import InvalidInput
from aiosollol.gateway.middleware.clients import ClientTotals, client_of
from aiosollol.net.error_log import ErrorLog
from aiosollol.net.http_server import HttpConnection

_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_MOST_KEPT_FILES = 1024
_MOST_RESERVED = 256  # connections over a limit, for those of other addresses
_LINGER_SECONDS = 1.0  # to read the rest of a refused body, so that its sender can read why


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits on the number of connections, and on the times of each. Times are in seconds.

    max_connections: open connections; others wait in the system's queue.
    header_timeout: from the first byte of a request's head to its last.
    idle_timeout: between two requests, and before the first.
    write_timeout: how long a client may leave its response unread once the buffers are full (about
        64 kB and those of the system).
    full_timeout: how long connections over the limit wait in the system's queue while none ends.
        Then, each second, those of addresses with less than half of all are served, up to a few
        over the limit, and others are answered 503.

    Raises InvalidInput for invalid values.
    """

    max_connections: int = 16_384
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    write_timeout: float = 60.0
    full_timeout: float = 10.0

    def __post_init__(self) -> None:
        for name in ("header_timeout", "idle_timeout", "write_timeout", "full_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} must be a number of seconds above 0")
        if self.max_connections < 1:
            raise InvalidInput("max_connections must be at least 1")


class ConnectionLimiter:
    """The state that all connections of one listener share: their number, and whether it is full.

    It is full at `max_connections`, or when a connection has one of the last files that this
    process may open: the system assigns the lowest free number, and the last ones are kept for
    nodes, the queue and logs.

    errors: the log of other errors on the connections.
    on_full: called once when it becomes full, and again only after `empty`.
    room: set when there is enough room to accept again.
    refused: number of connections refused for lack of room.
    late: number closed because a head arrived too slowly.
    stalled: number closed because a response was not read.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        errors: ErrorLog,
        on_full: Callable[[], None] | None = None,
    ) -> None:
        self.limits = limits
        self.errors = errors
        self.on_full = on_full
        self.is_closing = False
        self.open = 0
        self.refused = self.late = self.stalled = 0
        self.room = asyncio.Event()
        self._files = file_limit()
        self._last_file = self._files - min(_MOST_KEPT_FILES, self._files // 4)
        self._full_at = 0  # connections open when it became full; 0 while it is not
        self._by_client = ClientTotals()

    def enter(self, transport: asyncio.BaseTransport) -> str:
        """Count a new connection; return its client, for `leave`."""
        self.open += 1
        client = client_at(transport.get_extra_info("peername"))
        self._by_client.add(client, 1)
        if self.open >= self.limits.max_connections or number_of_file(transport) >= self._last_file:
            self.fill()
        return client

    def leave(self, client: str) -> None:
        """Count a closed connection."""
        self.open -= 1
        self._by_client.add(client, -1)
        # Not at once: resuming costs more than accepting a connection.
        if self._full_at and self.open < self._full_at - self._full_at // 16:
            self.room.set()

    def has_room(self) -> bool:
        """Whether a connection has ended since it was full."""
        return self.open < self._full_at

    def has_reserve_for(self, client: str) -> bool:
        """Whether a client may have a connection although it is full.

        There are a few for those that have less than half of all.
        """
        most = min(_MOST_RESERVED, max(1, self._full_at // 16))
        is_small = 2 * self._by_client[client] < self.open
        return is_small and self.open < self._full_at + most

    def empty(self) -> None:
        """Reset to not full, as connections are accepted again."""
        self._full_at = 0
        self.room.clear()
        if self.open >= self.limits.max_connections:
            self.fill()

    def why_full(self) -> str:
        """The limit that is reached, and how to raise it."""
        most = self.limits.max_connections
        if self.open >= most:
            return f"too many connections: max_connections={most} (--max-connections) are open"
        return (
            f"too many connections: {self.open} are open, and this process may open "
            f"{self._files:g} files (raise this with 'ulimit -n', or LimitNOFILE of systemd)"
        )

    def fill(self) -> None:
        """Mark it as full, for any reason."""
        if self.on_full is not None and not self._full_at:
            self._full_at = max(1, self.open)
            self.on_full()

    def attach(self, server: web.Server) -> None:
        """While closing, make each request the last one of its connection."""
        make = server.request_factory

        def made(message: Any, *others: Any) -> Any:
            if self.is_closing:  # the answer says "Connection: close", so the client knows
                message = message._replace(should_close=True)
            return make(message, *others)

        server.request_factory = made


class ClientConnection(HttpConnection):
    """A client's connection with deadlines, created by the listener."""

    __slots__ = ("_client", "_gate", "_head_timer", "_seen_idle", "_stall_timer")

    def __init__(
        self, gate: ConnectionLimiter, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            gate.errors,
            server,
            loop,
            keepalive_timeout=gate.limits.idle_timeout,
            lingering_time=_LINGER_SECONDS,
        )
        self._gate = gate
        self._client = ""
        self._seen_idle: tuple[object, float] | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request, and no byte of one has arrived."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and self._head_timer is None

    def idle_for(self, now: float) -> float:
        """Seconds since the first call of this, if no request has arrived since then."""
        if self._seen_idle is None or self._seen_idle[0] is not self._waiter:
            self._seen_idle = self._waiter, now
        return now - self._seen_idle[1]

    # The callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = self._gate.enter(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._gate.leave(self._client)
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():  # no head is awaited, or it is complete
            if self._head_timer is not None:
                self._stop_head_timer()
        elif self._head_timer is None:
            seconds = self._gate.limits.header_timeout
            self._head_timer = self._loop.call_later(seconds, self._head_is_late)

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self._gate.limits.write_timeout
        self._stall_timer = self._loop.call_later(seconds, self._has_stalled)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    # Deadlines.

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._gate.late += 1
        if self.transport is not None:
            self.transport.write(_TOO_LATE)
        self.force_close()

    def _has_stalled(self) -> None:
        self._stall_timer = None
        self._gate.stalled += 1
        if self.transport is not None:
            self.transport.abort()  # close() would wait until everything is read

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class Refused(asyncio.Protocol):
    """A connection over the limit: it is answered 503 and closed.

    why: the error message for the client. The connection is read for another second: closing one
    with unread bytes resets it, and the client may lose the response.
    """

    def __init__(self, why: str) -> None:
        self._why = why
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        body = orjson.dumps({"error": f"{self._why}; try again later"})
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
            f"Retry-After: 1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._transport.abort)

    def eof_received(self) -> None:
        """The client has read the response: returning None closes the connection."""


def file_limit() -> float:
    """Number of files and sockets that this process may have open."""
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def client_at(peer: object) -> str:
    """The client at a socket's peer address; "" for one that has none."""
    return client_of(peer[0]) if isinstance(peer, tuple) else ""


def number_of_file(transport: asyncio.BaseTransport) -> int:
    """The file descriptor of a transport's socket, 0 if it has none."""
    connection = transport.get_extra_info("socket")
    return 0 if connection is None else connection.fileno()
