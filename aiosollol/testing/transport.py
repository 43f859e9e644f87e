"""`FakeTransport`: a fake node and its transport, without sockets and, under trio, real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Unpack

import anyio

from aiosollol.errors import ConnectionLost, NodeTimeout, NodeUnreachable
from aiosollol.testing.faults import Fault
from aiosollol.testing.node import FakeNode, FakeOptions
from aiosollol.testing.requests import Reply
from aiosollol.wire.ollama.client import error_for


class FakeTransport(FakeNode):
    """A `ports.Transport` to a node inside it. Options as for `FakeNode`, plus `name`.

    It waits with anyio only, so under trio's ``MockClock(autojump_threshold=0)`` every cost takes
    exactly its virtual time and no real time. Raises the errors of a real transport:
    NodeUnreachable (REFUSE, or closed), NodeTimeout, ConnectionLost, and the errors of
    `wire.ollama.client.error_for` for a status other than 200.
    """

    def __init__(self, name: str = "fake", **options: Unpack[FakeOptions]) -> None:
        super().__init__(**options)
        self.name = name
        self.is_closed = False
        self._under_way: set[anyio.CancelScope] = set()
        self._broken: set[anyio.CancelScope] = set()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        deadline = anyio.current_time() + timeout
        with self._wait(deadline, timeout):
            self._connect()
            async with self.exchange(method, path, body or b"", headers) as reply:
                content = b"".join([piece async for piece in _FakePieces(self, reply)])
        if reply.status != 200:
            raise error_for(self.name, reply.status, content)
        return content

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        deadline = anyio.current_time() + timeout
        async with AsyncExitStack() as stack:
            with self._wait(deadline, timeout):
                self._connect()
                exchange = self.exchange("POST", path, body, headers)
                reply = await stack.enter_async_context(exchange)
                if reply.status != 200:
                    content = b"".join([piece async for piece in _FakePieces(self, reply)])
                    raise error_for(self.name, reply.status, content)
            yield _FakePieces(self, reply, deadline, timeout)

    async def aclose(self) -> None:
        self.is_closed = True
        self._break_connections()

    def _connect(self) -> None:
        if self.is_closed:
            raise NodeUnreachable(self.name, "this transport is closed")
        if self._next_faults and self._next_faults[0] is Fault.REFUSE:
            self._next_faults.popleft()
        elif self.fault is not Fault.REFUSE:
            return
        raise NodeUnreachable(self.name, "connection refused")

    def _fault_changed(self) -> None:
        if self.fault is Fault.REFUSE:
            self._break_connections()

    def _break_connections(self) -> None:
        for scope in self._under_way:
            self._broken.add(scope)
            scope.cancel()

    @contextmanager
    def _wait(self, deadline: float, timeout: float) -> Iterator[None]:
        """Bound a wait by the deadline, and end it if the connection breaks."""
        with anyio.CancelScope(deadline=deadline) as scope:
            self._under_way.add(scope)
            try:
                yield
            finally:
                self._under_way.discard(scope)
        is_broken = scope in self._broken
        self._broken.discard(scope)
        if scope.cancelled_caught:
            if is_broken:
                raise ConnectionLost(self.name, "connection reset by peer") from None
            raise NodeTimeout(self.name, f"no answer within {timeout:g} s") from None


class _FakePieces:
    """The body of a reply. Not a generator, which would need clean-up if left half-way."""

    def __init__(
        self,
        transport: FakeTransport,
        reply: Reply,
        deadline: float | None = None,
        timeout: float = 0.0,
    ) -> None:
        self._transport = transport
        self._reply = reply
        self._deadline = deadline
        self._timeout = timeout
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        if self._reply.parts is None:
            self._is_over = self._reply.is_finished = True
            return self._reply.body
        try:
            if self._deadline is None:
                return await anext(self._reply.parts)
            with self._transport._wait(self._deadline, self._timeout):
                return await anext(self._reply.parts)
            raise AssertionError("unreachable: a wait that is cut short raises")
        except StopAsyncIteration:
            self._is_over = True
            if self._reply.breaks:
                raise ConnectionLost(self._transport.name, "connection reset by peer") from None
            raise
