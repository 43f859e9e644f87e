"""Protocols of the replaceable parts."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.leasing.protocol import CoordinatorReply, MemberReport
from aiosollol.core.node import NodeSpec
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome
from aiosollol.core.offload.partitions import Partition, PartitionAnswer
from aiosollol.core.offload.write_report import WriteOrder, WriteReport
from aiosollol.core.routing.strategies import RouteRequest

CANCELLED = "cancelled"
"""The problem that a `Span` gets for a cancelled request."""


class Transport(Protocol):
    """The connection to one node. `HttpTransport` uses sockets, `testing.FakeTransport` doesn't.

    All failures of the connection or the node are raised as `NodeError`. Cancelling a request
    cancels it on the wire.
    """

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
        """The whole body of a response with status 200.

        timeout: seconds for everything, from connecting to the last byte.
        headers: sent in addition to the transport's own, which take precedence.
        most: bytes of the body; a longer one is a ProtocolError. None is 64 MiB.
        """
        ...

    def stream(
        self,
        path: str,
        body: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        stall_timeout: float = math.inf,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The body of the response to a POST, in pieces of any size, as they arrive.

        Entering waits for the status line, and raises for a status other than 200. Leaving early
        closes the connection.

        timeout: seconds for everything until the last piece.
        stall_timeout: seconds that the reader waits for a piece after the first one.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        ...


class Engine(Protocol):
    """Computes batches outside of this process, with the nodes of a pool.

    Implemented in `engines.dask.engine`, `engines.ray.engine` and `testing.FakeEngine`.
    """

    @property
    def name(self) -> str:
        """Its name as the `engine` of `embed_batch`."""
        ...

    @property
    def start_seconds(self) -> float:
        """Seconds until it could start a batch, measured or guessed; 0 if it is running."""
        ...

    async def carry(self, job: EngineJob, put: Callable[[int, Embeddings], None]) -> EngineOutcome:
        """Compute the vectors of `job`. Starts the engine if necessary.

        put: called with the position of a partition's first text and its vectors, as partitions are
        done, in any order; each position once. Cancellation ends the requests in flight at the
        nodes.

        Raises EngineError if the engine cannot be used, before any call of `put`; later failures
        are in the outcome's ``errors``.
        """
        ...

    def stats(self) -> dict[str, Any]:
        """Its part of `get_stats`; at least ``enabled``, ``running`` and ``dashboard``."""
        ...

    async def aclose(self) -> None:
        """Cancel its work and release its resources. Idempotent."""
        ...


class WorkerLink(Protocol):
    """The connection to an engine's workers, for one batch. Dask and Ray have one each."""

    @property
    def engine(self) -> str:
        """The name of the engine."""
        ...

    def rooms(self) -> Mapping[str, int]:
        """The number of partitions to assign at once, by name, for each eligible worker.

        0 for a worker that only gets partitions that failed on others.
        """
        ...

    async def wait_changed(self) -> None:
        """Wait until the workers may have changed. Raises EngineError if none can come back."""
        ...

    async def embed(self, worker: str, partition: Partition) -> PartitionAnswer:
        """Embed a partition on `worker`. Cancellation ends its work, down to the nodes.

        Raises EngineError or PoolClosed if the engine, rather than the worker, is lost.
        """
        ...

    async def recover(self, worker: str) -> None:
        """Called after `worker` died. Waits until `rooms` has it again, if it can come back."""
        ...


class Span(Protocol):
    """The trace span of one request to a node."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers for the node that carry the trace context."""
        ...

    def end(self, problem: str = "") -> None:
        """End the span. Called exactly once. problem: kind of failure, `CANCELLED`, or ""."""
        ...


class Trace(Protocol):
    """The trace context of a caller's requests to nodes. It may be used by any task."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers for a request without a span of its own."""
        ...

    def attempt(self, request: RouteRequest, spec: NodeSpec) -> Span:
        """Begin a span for the send of `request` to a node. Pair with `Span.end`."""
        ...


class Serving(Protocol):
    """A request served by a gateway."""

    def end(self, status: int | None, problem: str = "") -> None:
        """End it, in the task that began it. status: of the response; None if none was sent."""
        ...


class Tracing(Protocol):
    """Traces requests from their callers to the nodes.

    `telemetry.tracing.PassOn` forwards the received context,
    `telemetry.opentelemetry.OpenTelemetry` records spans.
    """

    def current(self) -> Trace | None:
        """The trace context of the current task; None if there is none."""
        ...

    def serve(
        self, passed: Mapping[str, str] | None, method: str, route: str, path: str
    ) -> Serving | None:
        """Begin a gateway request: it becomes the context of the current task's requests.

        passed: its trace headers, see `telemetry.tracing`.
        route: the path as registered; "" if there is none.
        Pair with `Serving.end`, unless None is returned.
        """
        ...


class WritingEngine(Engine, Protocol):
    """An engine that also has collections, whose data never passes through this process."""

    async def write(
        self, collection: Any, order: WriteOrder, on_progress: Callable[[int, int], None] | None
    ) -> WriteReport:
        """Embed a collection, and let the workers write it: see `OllamaPool.embed_bag`.

        on_progress: called with (partitions written, total). Raises InvalidInput, EngineError, and
        RequestFailed for a text without a vector.
        """
        ...


class Coordinator(Protocol):
    """Divides the nodes among programs: one for all programs, wherever it runs.

    `engines.ray.engine` has one, and tests have one in memory.
    """

    @property
    def name(self) -> str:
        """Its name, for logs and errors."""
        ...

    async def start(self) -> None:
        """Prepare for `exchange`, which may take a while; returns at once if prepared.

        Raises EngineError if that fails. If cancelled, the start continues in the background.
        """
        ...

    async def exchange(self, report: MemberReport) -> CoordinatorReply:
        """Send a report, and get a lease in reply. One call at a time per member.

        Raises EngineError if there is no coordinator, or if its protocol version differs.
        """
        ...

    async def leave(self, member: str) -> None:
        """Return the slots of `member`. Never raises: a lease that is not returned expires."""
        ...
