"""`Acceptor`: accepts connections from the system's queue while there is room for them.

Without room it leaves them in the queue, in order, and their clients wait. So the process does not
run out of open files, in which case uvloop would close connections that it cannot accept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Callable
from functools import partial

from aiosollol.gateway.serving.connections import (
    ClientConnection,
    ConnectionLimiter,
    Refused,
    client_at,
)

log = logging.getLogger("aiosollol")

BACKLOG = 4096
"""Connections that the system keeps until they are accepted, up to ``net.core.somaxconn``."""

_AT_ONCE = 16  # accepted in one turn of asyncio's loop; counted two turns later
_LOOK_SECONDS = 1.0  # between checks while there is no room
_IDLE_SECONDS = 10.0
"""A connection idle for longer is closed to make room. Not shorter: in a burst, thousands of
connections of one program may take seconds to send their first request."""
_LEAST_SECONDS = 0.01
_WARN_SECONDS = 60.0  # between two warnings
_SORTED_AT_ONCE = 256


class Acceptor:
    """Accepts connections while `gate` is not full.

    make: creates the protocol of a connection.
    idle: returns the connections that wait for a request now.
    """

    def __init__(
        self,
        gate: ConnectionLimiter,
        make: Callable[[], ClientConnection],
        idle: Callable[[], list[ClientConnection]],
    ) -> None:
        self._gate = gate
        self._make = make
        self._idle = idle
        self._sockets: list[socket.socket] = []  # these listen even while we don't accept
        self._servers: list[asyncio.Server] = []
        self._arriving: set[asyncio.Task[None]] = set()
        self._waiting: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._looked_at = self._warned_at = -math.inf

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> tuple[str, int]:
        """Start listening, and return the address. Raises OSError if it cannot."""
        server = await asyncio.get_running_loop().create_server(
            self._make, host, port, reuse_port=reuse_port or None, start_serving=False
        )
        self._sockets = [each.dup() for each in server.sockets]
        server.close()
        try:
            for each in self._sockets:
                each.setblocking(False)
                each.listen(BACKLOG)
            await self._accept()
        except BaseException:
            self._close()
            raise
        self._gate.on_full = self._pause
        return host, self._sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, after accepting the connections in the system's queue.

        Their handshake is complete, and closing the socket would reset them.
        """
        self._is_stopping = True
        self._gate.room.set()
        if self._waiting is not None:
            await asyncio.wait([self._waiting])
        self._accept_no_more()
        await asyncio.sleep(0)  # the loop has removed the reader after this
        loop = asyncio.get_running_loop()
        waiting = [connection for each in self._sockets for connection in _take(each)]
        self._close()  # immediately: connections that arrive in between are lost
        for connection in waiting:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._make, connection)
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _close(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            if isinstance(loop, asyncio.SelectorEventLoop):
                loop.add_reader(each, self._take_some, each)
            else:  # uvloop's server is faster, and loses no connection when it is closed
                server = await loop.create_server(self._make, sock=each.dup(), backlog=BACKLOG)
                self._servers.append(server)

    def _accept_no_more(self) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(loop, asyncio.SelectorEventLoop):
            for each in self._sockets:
                loop.remove_reader(each)
        for server in self._servers:
            server.close()
        self._servers.clear()

    def _take_some(self, listening: socket.socket) -> None:
        """Accept like asyncio's server, which loses just-accepted connections when it is closed."""
        loop = asyncio.get_running_loop()
        for connection in _take(listening, _AT_ONCE, on_failure=self._gate.fill):
            arriving = loop.create_task(self._connect(connection), name="connect a client")
            self._arriving.add(arriving)
            arriving.add_done_callback(self._arriving.discard)

    async def _connect(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has left already
            await asyncio.get_running_loop().connect_accepted_socket(self._make, connection)

    def _pause(self) -> None:
        if not self._is_stopping:
            task = asyncio.get_running_loop().create_task(self._wait(), name="wait for room")
            self._waiting = task

    async def _wait(self) -> None:
        """Accept no connection until there is room, and close idle ones to make room.

        If none has ended for `full_timeout`, serve or refuse the waiting connections.
        """
        loop = asyncio.get_running_loop()
        gate, limits = self._gate, self._gate.limits
        self._accept_no_more()
        why = gate.why_full()
        since = loop.time()
        if since - self._warned_at > _WARN_SECONDS:
            self._warned_at = since
            log.warning("%s; others wait", why)
        look = min(_LOOK_SECONDS, max(_LEAST_SECONDS, limits.full_timeout))
        while True:
            self._close_idle(loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(look):
                    await gate.room.wait()
            if self._is_stopping:
                return
            if gate.has_room():
                break
            if loop.time() - since >= limits.full_timeout:
                await self._sort(why)
        await self._accept()
        self._waiting = None
        gate.empty()

    def _close_idle(self, now: float) -> None:
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        for each in self._idle():
            if each.idle_for(now) >= _IDLE_SECONDS:
                each.force_close()

    async def _sort(self, why: str) -> None:
        """Serve the waiting connections of clients that have few, and refuse the others, so that
        one address cannot keep all others out."""
        loop, gate = asyncio.get_running_loop(), self._gate
        for each in self._sockets:
            for connection in _take(each, _SORTED_AT_ONCE):
                make: Callable[[], asyncio.BaseProtocol] = self._make
                try:
                    if not gate.has_reserve_for(client_at(connection.getpeername())):
                        gate.refused += 1
                        make = partial(Refused, why)
                    await loop.connect_accepted_socket(make, connection)
                except OSError:  # the client has left already
                    connection.close()


def _take(
    listening: socket.socket,
    most: float = math.inf,
    on_failure: Callable[[], None] | None = None,
) -> list[socket.socket]:
    """Accept connections from a socket's queue. on_failure: called if the system refuses one."""
    taken: list[socket.socket] = []
    while len(taken) < most:
        try:
            connection = listening.accept()[0]
        except BlockingIOError:
            break
        except ConnectionAbortedError:  # its client has left
            continue
        except OSError:  # out of files or memory
            if on_failure is not None:
                on_failure()
            break
        connection.setblocking(False)
        taken.append(connection)
    return taken
