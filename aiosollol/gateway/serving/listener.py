"""`Listener`: serves an application on a port, and stops without failing accepted requests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import NamedTuple, cast

from aiohttp import web

from aiosollol.core.redaction import without_userinfo
from aiosollol.errors import InvalidInput
from aiosollol.gateway.serving.accepting import Acceptor
from aiosollol.gateway.serving.connections import (
    ClientConnection,
    ConnectionLimiter,
    ConnectionLimits,
)
from aiosollol.net.error_log import ErrorLog
from aiosollol.net.http_server import hide_versions

_LAST_WORDS_SECONDS = 0.5
"""How long an idle connection stays open after the listener has closed: its client may have sent a
request that we have not received yet."""

_LOOK_SECONDS = 0.02
_CANCELLED_SECONDS = 0.1  # for cancelled handlers to end


class ListenSettings(NamedTuple):
    """The settings of an application's address, for errors. purpose: of the application."""

    host: str
    port: str
    purpose: str = ""


GATEWAY = ListenSettings("--host (gateway_host)", "--port (gateway_port)")
METRICS = ListenSettings("metrics_host", "--metrics-port (metrics_port)", " for metrics")


def cannot_listen(
    host: str, port: int, error: OSError | ValueError, settings: ListenSettings
) -> InvalidInput:
    """The error for an address that cannot be used: the reason, and the setting to change."""
    number = errno.EADDRNOTAVAIL
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror):
        # asyncio's text repeats the address, and has no errno if no address is of this machine.
        number = error.errno or number
        why = os.strerror(number)
    else:
        why = getattr(error, "strerror", None) or str(error)
    remedy = {
        errno.EADDRINUSE: f"; stop what listens there, or choose another port: {settings.port}",
        errno.EACCES: f"; choose another port: {settings.port}",
        errno.EADDRNOTAVAIL: f"; choose an address of this machine: {settings.host}",
    }.get(number, "")
    return InvalidInput(
        f"cannot listen on {without_userinfo(host)} port {port}{settings.purpose}: {why}{remedy}"
    )


class Listener:
    """Serves an application: `start` it, and `stop` it once.

    A client's disconnect cancels its request. There is no access log: paths could contain prompts.

    limits: of its connections.
    name: of its error log.
    settings: the settings of its address, for errors.
    """

    def __init__(
        self,
        app: web.Application,
        limits: ConnectionLimits | None = None,
        *,
        name: str = "gateway",
        settings: ListenSettings = GATEWAY,
    ) -> None:
        self._errors = ErrorLog(name)
        app.on_response_prepare.append(hide_versions)
        self.gate = ConnectionLimiter(limits or ConnectionLimits(), self._errors)
        self._settings = settings
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_CANCELLED_SECONDS
        )
        self._acceptor: Acceptor | None = None
        self.address: tuple[str, int] = ("", 0)

    @property
    def url(self) -> str:
        """The URL at which this machine reaches it."""
        return self.url_of(*self.address)

    @staticmethod
    def url_of(host: str, port: int) -> str:
        """The URL at which this machine reaches a server that listens on an address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Start listening.

        port: 0 takes a free one.
        reuse_port: share the port with other processes that do so too.

        Raises InvalidInput if it cannot listen.
        """
        await self._runner.setup()
        try:
            server = self._runner.server
            assert server is not None
            self.gate.attach(server)
            make = partial(ClientConnection, self.gate, server, asyncio.get_running_loop())
            acceptor = Acceptor(self.gate, make, self._idle)
            self.address = await acceptor.start(host, port, reuse_port=reuse_port)
        except (OSError, ValueError) as error:  # ValueError: an invalid host name
            await self._runner.cleanup()
            raise cannot_listen(host, port, error, self._settings) from error
        except BaseException:
            await self._runner.cleanup()
            raise
        self._acceptor = acceptor

    async def stop(self, patience: float, hurry: asyncio.Event | None = None) -> int:
        """Stop accepting connections, finish the requests in flight, and close.

        patience: seconds after which requests are cut off.
        hurry: when set, cuts them off at once.

        Returns the number of connections cut off in a request.
        """
        hurry = hurry or asyncio.Event()
        self.gate.is_closing = True
        if self._acceptor is not None:
            await self._acceptor.stop()
        cut_off = await self._finish(patience, hurry)
        await self._runner.cleanup()
        self._errors.close()
        return cut_off

    async def _finish(self, patience: float, hurry: asyncio.Event) -> int:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while connections := self._connections():
            passed = loop.time() - began
            if hurry.is_set() or passed >= patience:
                return sum(not connection.is_idle for connection in connections)
            if passed >= _LAST_WORDS_SECONDS:
                for connection in connections:
                    if connection.is_idle:
                        connection.force_close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await hurry.wait()
        return 0

    def _idle(self) -> list[ClientConnection]:
        return [connection for connection in self._connections() if connection.is_idle]

    def _connections(self) -> list[ClientConnection]:
        server = self._runner.server
        if server is None:
            return []
        return [
            connection
            for connection in cast("list[ClientConnection]", server.connections)
            if connection.transport is not None
        ]


RELOAD = getattr(signal, "SIGHUP", None)


class Signals:
    """SIGTERM and SIGINT set `stop`, a second one `hurry`; SIGHUP calls `on_reload`.

    Use it with ``with``, in the event loop's thread.

    number: the first signal received.
    """

    def __init__(self, on_reload: Callable[[], None]) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.number: signal.Signals | None = None
        self._on_reload = on_reload
        self._watched: list[int] = []

    def __enter__(self) -> Signals:
        if sys.platform != "win32":
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # Only the main thread may set handlers; in others, the caller stops us.
                with contextlib.suppress(RuntimeError, ValueError):
                    loop.add_signal_handler(number, self.receive, number)
                    self._watched.append(number)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in self._watched:
            loop.remove_signal_handler(number)
        self._watched.clear()

    def receive(self, number: signal.Signals) -> None:
        """Handle a signal."""
        if number == RELOAD:
            self._on_reload()
        elif self.stop.is_set():
            self.hurry.set()
        else:
            self.number = number
            self.stop.set()

    def end(self) -> None:
        """Act as on SIGTERM, because the parent process is gone."""
        self.receive(signal.SIGTERM)
