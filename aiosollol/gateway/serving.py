"""`Listener`: an application on a port, that stops without failing a request it has taken."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import cast

from aiohttp import web

from aiosollol.errors import InvalidInput
from aiosollol.gateway.accepting import Acceptor
from aiosollol.gateway.connections import Connection, ConnectionLimits, Gate

_LAST_WORDS_SECONDS = 0.5
"""How long a kept connection may still bring a request after the listener has closed: its client
may have sent one that we have not seen yet."""

_LOOK_SECONDS = 0.02
_CANCELLED_SECONDS = 0.1  # for handlers to end once they are cancelled


class Listener:
    """An application, served. `start` it, and `stop` it once.

    A client that leaves cancels its request. There is no access log: prompts could be in paths.
    """

    def __init__(
        self, app: web.Application, limits: ConnectionLimits | None = None, *, name: str = ""
    ) -> None:
        self.gate = Gate(limits or ConnectionLimits())
        self._name = f" for {name}" if name else ""
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_CANCELLED_SECONDS
        )
        self._acceptor: Acceptor | None = None
        self.address: tuple[str, int] = ("", 0)

    @property
    def url(self) -> str:
        """Where it answers, as this machine reaches it."""
        return self.url_of(*self.address)

    @staticmethod
    def url_of(host: str, port: int) -> str:
        """The URL of what listens on an address, as this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        """Begin to listen. port: 0 takes a free one.

        reuse_port: share the port with other processes that do so too. Raises InvalidInput where
        it cannot listen.
        """
        await self._runner.setup()
        try:
            server = self._runner.server
            assert server is not None
            self.gate.attach(server)
            make = partial(Connection, self.gate, server, asyncio.get_running_loop())
            acceptor = Acceptor(self.gate, make, self._idle)
            self.address = await acceptor.start(host, port, reuse_port=reuse_port)
        except OSError as error:
            await self._runner.cleanup()
            why = error.strerror or str(error)
            message = f"cannot listen on {host} port {port}{self._name}: {why}"
            raise InvalidInput(message) from error
        except BaseException:
            await self._runner.cleanup()
            raise
        self._acceptor = acceptor

    async def stop(self, patience: float, hurry: asyncio.Event | None = None) -> int:
        """Accept nobody any more, finish what runs, and close. Returns how much was cut off.

        patience: seconds until what still runs is cut off. hurry: when set, that is at once.
        """
        hurry = hurry or asyncio.Event()
        self.gate.is_closing = True
        if self._acceptor is not None:
            await self._acceptor.stop()
        cut_off = await self._finish(patience, hurry)
        await self._runner.cleanup()
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

    def _idle(self) -> list[Connection]:
        return [connection for connection in self._connections() if connection.is_idle]

    def _connections(self) -> list[Connection]:
        server = self._runner.server
        if server is None:
            return []
        return [
            connection
            for connection in cast("list[Connection]", server.connections)
            if connection.transport is not None
        ]
