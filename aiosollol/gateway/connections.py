"""`Connection`: one client's connection to the gateway, that cannot be held open for nothing.

aiohttp times a connection that is idle. What it does not time is done here: a head that comes a
byte a second, a client that does not read its answer, and more connections than there should be.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from aiosollol.error_log import ErrorLog
from aiosollol.errors import InvalidInput
from aiosollol.http_server import HttpConnection

_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_LINGER_SECONDS = 1.0  # for the rest of a body that nobody wants, so that its sender can read why


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How long a connection may take, and how many there may be. Times are seconds.

    header_timeout: from the first byte of a request's head to its last. idle_timeout: between two
    requests, and before the first. write_timeout: how long a client may leave its answer unread
    once more than the buffers hold (about 64 kB and those of the system) is waiting.
    """

    max_connections: int = 4096
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    write_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("header_timeout", "idle_timeout", "write_timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidInput(f"{name} must be a number of seconds above 0")
        if self.max_connections < 1:
            raise InvalidInput("max_connections must be at least 1")


class Gate:
    """What all connections of one listener share.

    refused: connections that were too many. late: those cut off for a head that came too slowly.
    stalled: those cut off for an answer that nobody read. errors: where what else goes wrong on
    them is logged.
    """

    def __init__(self, limits: ConnectionLimits, errors: ErrorLog) -> None:
        self.limits = limits
        self.errors = errors
        self.is_closing = False
        self.open = 0
        self.refused = self.late = self.stalled = 0

    def attach(self, server: web.Server) -> None:
        """Let requests that come while the gate is closing be the last of their connection."""
        make = server.request_factory

        def made(message: Any, *others: Any) -> Any:
            if self.is_closing:  # the answer says "Connection: close", so the client knows
                message = message._replace(should_close=True)
            return make(message, *others)

        server.request_factory = made


class Connection(HttpConnection):
    """A connection with deadlines. Made by the listener, one for each client."""

    __slots__ = ("_gate", "_head_timer", "_is_counted", "_stall_timer")

    def __init__(self, gate: Gate, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            gate.errors,
            server,
            loop,
            keepalive_timeout=gate.limits.idle_timeout,
            lingering_time=_LINGER_SECONDS,
        )
        self._gate = gate
        self._is_counted = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request of which nothing has come yet."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and self._head_timer is None

    # The callbacks of asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        gate = self._gate
        if gate.open >= gate.limits.max_connections:
            gate.refused += 1
            stream = cast(asyncio.Transport, transport)
            stream.write(_TOO_MANY)
            stream.close()
            return
        gate.open += 1
        self._is_counted = True
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._is_counted:
            return
        self._is_counted = False
        self._gate.open -= 1
        self._stop_head_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_counted:
            return
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():  # nobody waits for a head, or it is complete
            if self._head_timer is not None:
                self._stop_head_timer()
        elif self._head_timer is None:
            seconds = self._gate.limits.header_timeout
            self._head_timer = self._loop.call_later(seconds, self._head_is_late)

    def eof_received(self) -> None:
        if self._is_counted:
            super().eof_received()

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
            self.transport.abort()  # closing would wait until everything was read

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
