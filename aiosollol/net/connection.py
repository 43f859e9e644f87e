"""`ConnectionPool`: the connections to one server, kept for reuse, each a `Connection`."""

from __future__ import annotations

import asyncio
import time
from typing import cast

from aiosollol.net.connector import Connector
from aiosollol.net.http_exchange import HttpExchange

_READ_BYTES = 1 << 15
_MOST_READ_BYTES = 1 << 18
SLICE_BYTES = 1 << 18
"""Larger requests are sent in slices, so that other tasks can run in between."""


class Connection(asyncio.BufferedProtocol):
    """One connection, which carries one `HttpExchange` at a time. Reports to its pool, `owner`.

    idle_since: set by the owner.
    """

    def __init__(self, owner: ConnectionPool, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle_since = 0.0
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._exchange: HttpExchange | None = None
        self._has_answered = False
        self._is_choked = False
        # Reading into a buffer of our own is cheaper than one that the loop allocates each time.
        self._buffer = memoryview(bytearray(_READ_BYTES))

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "busy" if self._exchange else "idle"
        return f"<Connection {state}>"

    @property
    def is_lost(self) -> bool:
        """Whether the connection is closed."""
        return self._transport is None

    # For callers.

    def begin(self, at: float, *, is_streamed: bool = False) -> HttpExchange:
        """A new exchange with deadline `at`; `send` comes next. The previous one must be over."""
        assert self._exchange is None
        self._exchange = exchange = HttpExchange(
            self, at, is_repeat=self._has_answered, is_streamed=is_streamed
        )
        if self._transport is None or self._transport.is_closing():
            exchange.fail(ConnectionResetError("it was closed before it was used"))
        return exchange

    def send(self, request: bytes) -> None:
        """Send the whole request of the exchange."""
        if self._exchange is not None and self._transport is not None:
            self._exchange.is_sent = True
            self._transport.write(request)

    async def send_large(self, head: bytes, body: bytes) -> None:
        """Send a request with a large body in slices, as fast as the server takes them.

        Returns when everything is handed over, or as soon as the exchange is over.
        """
        exchange, transport = self._exchange, self._transport
        if exchange is None or transport is None:
            return
        transport.write(head)
        with memoryview(body) as rest:
            for at in range(0, len(rest), SLICE_BYTES):
                await asyncio.sleep(0)
                while self._is_choked and not exchange.is_over:
                    await exchange.changed()
                if exchange.is_over:
                    return
                transport.write(rest[at : at + SLICE_BYTES])
        exchange.is_sent = True

    def close(self) -> None:
        """Close gracefully if idle, else abort. `ConnectionPool.lost` is called when done."""
        if self._exchange is not None:
            self._exchange.fail(ConnectionAbortedError("it was closed on this side"))
        elif self._transport is not None and self._transport.get_write_buffer_size():
            # The server answered without reading the whole request; it may never read the rest.
            self._transport.abort()
        elif self._transport is not None:
            self._transport.close()

    # For its exchange.

    def pause_reading(self) -> None:
        """Stop reading, so that the server has to wait."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def release(self, *, is_reusable: bool) -> None:
        """End the exchange; keep the connection for the next one if it is reusable."""
        self._exchange = None
        self._has_answered = True
        if self._transport is None:
            return
        if is_reusable and not self._transport.is_closing():
            self._owner.put(self)
        else:
            # Not `close`, which would first send the rest of the request. The server stops working
            # on the request when the connection breaks.
            self._owner.drop(self)
            self._transport.abort()

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._buffer[:nbytes])
        if nbytes == len(self._buffer) < _MOST_READ_BYTES:  # answers are large
            self._buffer = memoryview(bytearray(_MOST_READ_BYTES))
        if self._exchange is not None:
            self._exchange.feed(data)
        elif self._transport is not None:  # data without a request
            self._owner.drop(self)
            self._transport.abort()

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._exchange.feed_eof()
        self._owner.drop(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._owner.drop(self)
        if self._exchange is not None:
            self._exchange.fail(error or ConnectionResetError("it ended without an answer"))
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self._is_choked = True

    def resume_writing(self) -> None:
        self._is_choked = False
        if self._exchange is not None:
            self._exchange.wake()


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
