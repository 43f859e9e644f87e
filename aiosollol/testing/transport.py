"""Fakes inside the process: `FakeTransport`, without sockets or real time, and `FakeEngine`."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Unpack

import anyio

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome, partitions
from aiosollol.core.report import NodeShare
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import (
    ConnectionLost,
    EngineError,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    SollolError,
)
from aiosollol.testing.faults import Fault
from aiosollol.testing.models import FakeModel, fake_vector
from aiosollol.testing.node import FakeNode, FakeOptions
from aiosollol.testing.requests import Reply
from aiosollol.wire.ollama.address_hints import address_hint
from aiosollol.wire.ollama.client import error_for
from aiosollol.wire.retry_after import read_retry_after


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
        most: int | None = None,
    ) -> bytes:
        deadline = anyio.current_time() + timeout
        with self._wait(deadline, f"no answer within {timeout:g} s"):
            self._connect()
            async with self.exchange(method, path, body or b"", headers) as reply:
                content = b"".join([piece async for piece in _FakePieces(self, reply)])
        if reply.status != 200:
            raise self._failure(reply, path, content)
        return content

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        stall_timeout: float = math.inf,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        deadline = anyio.current_time() + timeout
        async with AsyncExitStack() as stack:
            with self._wait(deadline, f"no answer within {timeout:g} s"):
                self._connect()
                exchange = self.exchange("POST", path, body, headers)
                reply = await stack.enter_async_context(exchange)
                if reply.status != 200:
                    content = b"".join([piece async for piece in _FakePieces(self, reply)])
                    raise self._failure(reply, path, content)
            yield _FakePieces(self, reply, deadline, timeout, stall_timeout)

    async def aclose(self) -> None:
        self.is_closed = True
        self._break_connections()

    def _failure(self, reply: Reply, path: str, content: bytes) -> NodeError:
        if reply.status == 0:
            return ConnectionLost(self.name, "connection reset by peer")
        location = reply.headers.get("Location", "")
        return error_for(
            self.name,
            reply.status,
            content,
            path=path,
            retry_after=read_retry_after(reply.headers.get("Retry-After", ""), time.time()),
            hint=address_hint(f"http://{self.name}", path, reply.status, location),
        )

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
    def _wait(self, deadline: float, problem: str) -> Iterator[None]:
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
            raise NodeTimeout(self.name, problem) from None


class _FakePieces:
    """The body of a reply. Not a generator, which would need clean-up if left half-way."""

    def __init__(
        self,
        transport: FakeTransport,
        reply: Reply,
        deadline: float | None = None,
        timeout: float = 0.0,
        stall_timeout: float = math.inf,
    ) -> None:
        self._transport = transport
        self._reply = reply
        self._deadline = deadline
        self._timeout = timeout
        self._stall_timeout = stall_timeout
        self._has_begun = False
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
            deadline, problem = self._deadline, f"no answer within {self._timeout:g} s"
            stalls_at = anyio.current_time() + self._stall_timeout
            if self._has_begun and stalls_at < deadline:
                deadline, problem = stalls_at, f"sent nothing for {self._stall_timeout:g} s"
            with self._transport._wait(deadline, problem):
                piece = await anext(self._reply.parts)
                self._has_begun = True
                return piece
            raise AssertionError("unreachable: a wait that is cut short raises")
        except StopAsyncIteration:
            self._is_over = True
            if self._reply.breaks:
                raise ConnectionLost(self._transport.name, "connection reset by peer") from None
            raise


class FakeEngine:
    """Answers with `fake_vector`, two partitions at a time, the second of them first.

    node: the node it attributes the work to.
    seconds: duration of a partition.
    fails: why it cannot start; "" if it can.
    missing: position -> error.
    forgets: positions for which it gives neither a vector nor an error.
    job: the last job it was given.
    """

    def __init__(
        self,
        model: FakeModel,
        *,
        node: str = "a",
        name: str = "dask",
        start_seconds: float = 0.0,
        seconds: float = 0.1,
        fails: str = "",
        missing: Mapping[int, SollolError] | None = None,
        forgets: range = range(0),
    ) -> None:
        self.name = name
        self.start_seconds = start_seconds
        self.fails = fails
        self.job: EngineJob | None = None
        self.is_closed = False
        self.was_cancelled = False
        self._model = model
        self._node = node
        self._seconds = seconds
        self._missing = dict(missing or {})
        self._forgets = forgets

    async def carry(self, job: EngineJob, put: Callable[[int, Embeddings], None]) -> EngineOutcome:
        if self.fails:
            raise EngineError(self.name, self.fails)
        self.job = job
        outcome = EngineOutcome(dashboard="http://127.0.0.1:8787/status")
        parts = list(partitions(job.texts, job.tokens, job.predicted_seconds, 2))
        for number in range(0, len(parts), 2):
            try:
                await anyio.sleep(self._seconds)
            except BaseException:
                self.was_cancelled = True
                raise
            for place, part in reversed(list(enumerate(parts[number : number + 2]))):
                self._answer(job, part, put, outcome, f"worker {place}")
        return outcome

    def stats(self) -> dict[str, Any]:
        return {"enabled": True, "running": self.job is not None, "dashboard": None}

    async def aclose(self) -> None:
        self.is_closed = True

    def _answer(
        self,
        job: EngineJob,
        part: range,
        put: Callable[[int, Embeddings], None],
        outcome: EngineOutcome,
        worker: str,
    ) -> None:
        if set(part) & set(self._forgets):
            return
        model = self._model
        vectors = (fake_vector(model.weights, job.texts[item], model.dim) for item in part)
        errors = {i - part.start: self._missing[i] for i in part if i in self._missing}
        put(part.start, Embeddings(b"".join(map(bytes, vectors)), model.dim, errors=errors))
        share = NodeShare(items=len(part) - len(errors), requests=1, seconds=self._seconds)
        counters = NodeCounters(succeeded=1, vectors=share.items, latency=self._seconds)
        outcome.add(part.start, {self._node: share}, {self._node: counters}, errors, worker)
