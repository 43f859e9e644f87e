"""`FakeOllama`: a fake node with a real HTTP server; `FakeOllamaProcess`: in a child process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from functools import partial
from typing import Any, Unpack, cast

from aiohttp import web

from aiosollol.core.address import Address
from aiosollol.errors import InvalidInput
from aiosollol.net.error_log import ErrorLog
from aiosollol.net.http_server import HttpConnection
from aiosollol.net.subprocess import ServerProcess
from aiosollol.testing.faults import Fault
from aiosollol.testing.models import FakeModel
from aiosollol.testing.node import DEFAULT_MODELS, FakeNode, FakeOptions, ProcessOptions
from aiosollol.testing.requests import Reply

_BACKLOG = 1024


class FakeOllama(FakeNode):
    """An HTTP server that answers like Ollama, and fails like it on demand.

    ::

        async with FakeOllama(models=["all-minilm"], seconds_per_item=0.01) as node:
            ...  # ask node.url
            node.fault = Fault.HANG

    Options as for `FakeNode`, plus `host` and `port` (0 picks a free one) to listen on. A client
    that disconnects cancels its request. Needs asyncio. Raises InvalidInput if the port is taken.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, **options: Unpack[FakeOptions]
    ) -> None:
        super().__init__(**options)
        self.host = host
        self.port = port
        self._handlers: set[asyncio.Task[Any]] = set()
        self._http: web.Server | None = None
        self._errors = ErrorLog("fake node")
        self._listener: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._reopening: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Its URL; valid during REFUSE too, when it does not listen."""
        return Address("http", self.host, self.port).url

    async def __aenter__(self) -> FakeOllama:
        try:
            bound = self._bind()
        except OSError as error:
            raise InvalidInput(f"cannot listen on {self.url}: {error.strerror}") from error
        self.port = bound.getsockname()[1]
        self._http = web.Server(self._handle, handler_cancellation=True)
        if self.fault is Fault.REFUSE:
            self._reserved = bound
        else:
            await self._listen(bound)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reopening is not None:
            await self._reopening
        self._stop_listening()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        for handler in tuple(self._handlers):
            handler.cancel()  # a hanging one would never end by itself
        if self._http is not None:
            http, self._http = self._http, None
            await http.shutdown(0.1)
        self._errors.close()

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Make the next `times` requests that compute fail with `fault`.

        Raises InvalidInput for REFUSE: refused connections cannot be counted.
        """
        if fault is Fault.REFUSE:
            raise InvalidInput("FakeOllama cannot count refused connections: set fault instead")
        super().fail_next(fault, times)

    # ---- the listener

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self.host, self.port))
        except OSError:
            bound.close()
            raise
        bound.setblocking(False)
        return bound

    async def _listen(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        assert self._http is not None
        make = partial(HttpConnection, self._errors, self._http, loop)
        self._listener = await loop.create_server(make, sock=bound, backlog=_BACKLOG)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _fault_changed(self) -> None:
        if self._http is None:
            return
        if self.fault is Fault.REFUSE:
            if self._reserved is None:
                self._refuse()
        elif self._reserved is not None:
            bound, self._reserved = self._reserved, None
            bound.listen(_BACKLOG)  # accept connections from now on
            self._reopening = asyncio.ensure_future(self._listen(bound))

    def _refuse(self) -> None:
        if self._reopening is not None and not self._reopening.done():
            # The last fault was cleared just now: the listener is still opening, so close it later.
            self._reopening.add_done_callback(lambda _: self._fault_changed())
            return
        assert self._http is not None
        self._stop_listening()
        # Bound but not listening: connections are refused, and the port cannot be taken.
        self._reserved = self._bind()
        for connection in self._http.connections:
            if connection.transport is not None:
                _reset(connection.transport)

    # ---- one request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            body = await request.content.read()  # not request.read(), which has a limit
            exchange = self.exchange(request.method, request.path, body, request.headers)
            async with exchange as reply:
                if reply.parts is not None:
                    return await _send_parts(request, reply)
            if reply.status == 0:
                if request.transport is not None:
                    _reset(request.transport)
                return web.Response()  # never sent
            headers = dict(reply.headers)
            if reply.content_type:
                headers["Content-Type"] = reply.content_type
            return web.Response(status=reply.status, body=reply.body, headers=headers)
        finally:
            self._handlers.discard(task)


async def _send_parts(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    assert reply.parts is not None
    response = web.StreamResponse(status=reply.status, headers={"Content-Type": reply.content_type})
    response.content_length = reply.length
    await response.prepare(request)
    async for part in reply.parts:
        await response.write(part)
    if reply.breaks:
        if request.transport is not None:
            _reset(request.transport)
        return response
    await response.write_eof()
    return response


def _reset(transport: asyncio.BaseTransport) -> None:
    """Break a connection at once: with a linger time of zero, closing sends RST, not FIN."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cast(asyncio.Transport, transport).abort()  # uvloop's is one, but does not say so


class FakeOllamaProcess:
    """``python -m aiosollol.testing`` as a context manager with a `url`.

    Options: those of `ProcessOptions`, plus `host` and `port` (0 picks a free one) to listen on.
    Only `fault` may be changed while it runs, and its counters cannot be read. It ends with this
    process, however this one ends. Entering raises NodeUnreachable or NodeTimeout, with what the
    process wrote to stderr, if it is not ready within `start_timeout` seconds.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        start_timeout: float = 30.0,
        **options: Unpack[ProcessOptions],
    ) -> None:
        if unknown := options.keys() - ProcessOptions.__annotations__.keys():
            raise TypeError(f"a fake in a process has no option {min(unknown)!r}")
        models = options.pop("models", DEFAULT_MODELS)
        arguments = ["--host", host, "--port", str(port)]
        for name, value in options.items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        for model in [models] if isinstance(models, str) else models:
            made = FakeModel(model) if isinstance(model, str) else model
            arguments += ["--model", f"{made.name},{made.kind},{made.dim},{made.digest}"]
        self._process = ServerProcess(
            "fake", "aiosollol.testing", arguments, start_timeout=start_timeout
        )
        self._url = ""
        self._fault: Fault | None = None

    @property
    def url(self) -> str:
        """Its URL. Raises InvalidInput before it is entered."""
        if not self._url:
            raise InvalidInput("the fake has not been started: use 'async with'")
        return self._url

    @property
    def pid(self) -> int | None:
        """The process id, or None if it is not running."""
        return self._process.pid

    @property
    def fault(self) -> Fault | None:
        """The current fault; None clears it. Takes effect within about a millisecond."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._fault = fault
        if self._url:  # otherwise sent when it has started
            self._process.tell(b"" if fault is None else fault.name.encode())

    def kill(self) -> None:
        """End it like ``kill -9``. Its port is free at once."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def __aenter__(self) -> FakeOllamaProcess:
        self._url = await self._process.start()
        self.fault = self._fault
        return self

    async def __aexit__(self, *_: object) -> None:
        self._url = ""
        await self._process.aclose()
