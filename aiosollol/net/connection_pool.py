"""`ConnectionPool`: the connections to one server, kept for reuse."""

from __future__ import annotations

import asyncio
import time

from aiosollol.net.connection import Connection
from aiosollol.net.connector import Connector

KEEP_SECONDS = 60.0
"""How long an idle connection is kept."""


class Closed(ConnectionError):
    """The pool is closed."""


class ConnectionPool:
    """The connections to one server: as many as needed at once; idle ones are kept for reuse.

    Bound to the event loop in which the first connection is made.
    """

    def __init__(self, dialer: Connector) -> None:
        self._dialer = dialer
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []  # the last one used is at the end
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._dialling: set[asyncio.Timeout] = set()
        self._is_closed = False
        self._all_lost: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Connections: {len(self._open)} open, {len(self._idle)} idle>"

    def take(self) -> Connection | None:
        """An idle connection, if there is one."""
        return self._idle.pop() if self._idle else None

    async def make(self, seconds: float) -> Connection:
        """A new connection. Raises OSError, Closed, or TimeoutError after `seconds`."""
        if self._is_closed:
            raise Closed
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds) as limit:
                self._dialling.add(limit)
                try:
                    connection = await self._dialer.dial(lambda: Connection(self, loop))
                finally:
                    self._dialling.discard(limit)
        except TimeoutError:
            if self._is_closed:
                raise Closed from None
            raise
        if self._is_closed:
            connection.close()
            raise Closed
        # Only now: a connection given up while it was made is closed without calling `lost`.
        if not connection.is_lost:
            self._open.add(connection)
        return connection

    async def aclose(self) -> None:
        """Close every connection and end its exchange. Idempotent."""
        self._is_closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for limit in self._dialling:
            if not limit.expired():
                limit.reschedule(0.0)
        for connection in list(self._open):
            connection.close()
        while self._open:
            # Sockets close in a later iteration of the loop; with TLS a close_notify is sent
            # first, and the server has a moment to answer it.
            if self._all_lost is None:
                self._all_lost = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._all_lost)

    # For the connections.

    def put(self, connection: Connection) -> None:
        """Keep an idle connection for reuse."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._sweep_timer is None:
            self._sweep_timer = connection.loop.call_later(KEEP_SECONDS, self._sweep)

    def drop(self, connection: Connection) -> None:
        """Stop reusing a connection."""
        if connection in self._idle:
            self._idle.remove(connection)

    def lost(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._open.discard(connection)
        if self._all_lost is not None and not self._open:
            self._all_lost.set_result(None)
            self._all_lost = None

    def _sweep(self) -> None:
        """Close connections that have been idle for too long."""
        self._sweep_timer = None
        now = time.monotonic()
        while self._idle and self._idle[0].idle_since + KEEP_SECONDS <= now:
            self._idle.pop(0).close()
        if self._idle:
            first = self._idle[0]
            delay = first.idle_since + KEEP_SECONDS - now
            self._sweep_timer = first.loop.call_later(delay, self._sweep)
