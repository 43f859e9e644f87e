"""The places where one implementation can stand for another, as Protocols."""

from __future__ import annotations

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
"""What a `Span` is told of a request that nobody waits for any more."""


class Transport(Protocol):
    """The way to one node. `HttpTransport` uses sockets, `testing.FakeTransport` none.

    Both raise nothing but `NodeError` for what goes wrong on the way or at the node, and let
    cancellation through: a cancelled request is cancelled on the wire.
    """

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The whole body of an answer with status 200.

        `timeout` is in seconds and covers everything, from connecting to the last byte. `headers`
        are sent beside those that the way has of its own, which count more.
        """
        ...

    def stream(
        self,
        path: str,
        body: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The body of the answer to a POST, in pieces of any size, as they arrive.

        Entering waits for the status line, and raises for one other than 200. `timeout` is in
        seconds and covers everything until the last piece. Leaving early closes the connection.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        ...


class Engine(Protocol):
    """A place outside of this process where batches are computed, with the nodes of a pool.

    `engines.dask.engine` and `engines.ray.engine` have one each, `testing.FakeEngine` needs
    neither.
    """

    @property
    def name(self) -> str:
        """What `embed_batch` calls it."""
        ...

    @property
    def start_seconds(self) -> float:
        """Seconds until it could begin with a batch, as was seen or is guessed; 0 if it runs."""
        ...

    async def carry(self, job: EngineJob, put: Callable[[int, Embeddings], None]) -> EngineOutcome:
        """Compute the vectors of `job`. Starts the engine if it does not run yet.

        put: called with the position of a partition's first text and its vectors, as partitions are
        done, in any order; each position once. Cancellation ends what is under way at the nodes.

        Raises EngineError if it cannot be used at all, before anything was put; what fails after
        that is in the outcome's ``errors``.
        """
        ...

    def stats(self) -> dict[str, Any]:
        """What `get_stats` tells of it; ``enabled``, ``running`` and ``dashboard`` at least."""
        ...

    async def aclose(self) -> None:
        """End what it has under way and let go of what it holds. Idempotent."""
        ...


class WorkerLink(Protocol):
    """The way to the workers of an engine, for one batch. Dask and Ray have one each."""

    @property
    def engine(self) -> str:
        """The name of the engine."""
        ...

    def rooms(self) -> Mapping[str, int]:
        """The workers that can do the batch, and how many partitions to give to each at once.

        0 for a worker that only gets partitions at which others failed.
        """
        ...

    async def wait_changed(self) -> None:
        """Return when workers may have come or gone. Raises EngineError if there is no hope."""
        ...

    async def embed(self, worker: str, partition: Partition) -> PartitionAnswer:
        """What `worker` makes of a partition. Cancellation ends its work, down to the nodes.

        Raises EngineError or PoolClosed if not the worker but the engine is lost.
        """
        ...

    async def recover(self, worker: str) -> None:
        """Called after `worker` died. Returns when `rooms` has it again, if it can come back."""
        ...


class Span(Protocol):
    """One request to a node, for whoever follows it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What the node is sent, so that it can say to what its work belongs."""
        ...

    def end(self, problem: str = "") -> None:
        """It is over. problem: the kind of its failure, `CANCELLED`, or "". Called exactly once."""
        ...


class Trace(Protocol):
    """What a caller's requests to nodes belong to. It may be used by any task."""

    @property
    def headers(self) -> Mapping[str, str]:
        """For a request that has no span of its own."""
        ...

    def attempt(self, request: RouteRequest, spec: NodeSpec) -> Span:
        """`request` is about to be sent to a node. `Span.end` must follow."""
        ...


class Serving(Protocol):
    """A request that a gateway serves."""

    def end(self, status: int | None, problem: str = "") -> None:
        """It is over; in the task that began it. status: of the answer, None if nobody got one."""
        ...


class Tracing(Protocol):
    """Follows requests from their callers to the nodes.

    `tracing.PassOn` hands on what came, `otel.OpenTelemetry` records spans.
    """

    def current(self) -> Trace | None:
        """What requests of the running task belong to; None if to nothing."""
        ...

    def serve(
        self, passed: Mapping[str, str] | None, method: str, route: str, path: str
    ) -> Serving | None:
        """A request came to a gateway: from now on the running task's requests belong to it.

        passed: the headers of its trace, see `telemetry.tracing`. route: the path as it is
        registered, "" if there is none. `Serving.end` must follow, where one is given.
        """
        ...


class WritingEngine(Engine, Protocol):
    """An engine that also knows collections of its own, which never pass through this process."""

    async def write(
        self, collection: Any, order: WriteOrder, on_progress: Callable[[int, int], None] | None
    ) -> WriteReport:
        """Embed a collection, and let the workers write it: see `OllamaPool.embed_bag`.

        on_progress: called with (partitions written, all). Raises InvalidInput, EngineError, and
        RequestFailed for a text without a vector.
        """
        ...


class Coordinator(Protocol):
    """What divides the nodes among programs: one for all of them, wherever it is.

    `engines.ray.engine` has one, and tests have one in memory.
    """

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    async def start(self) -> None:
        """Have what `exchange` needs, which may take a while; at once if it is there.

        Raises EngineError if it cannot be had. Cancelled, it goes on with what it was starting.
        """
        ...

    async def exchange(self, report: MemberReport) -> CoordinatorReply:
        """Tell how this program is, and get what it may use. One at a time for each member.

        Raises EngineError if there is no coordinator, and for one that speaks another protocol.
        """
        ...

    async def leave(self, member: str) -> None:
        """Give back what `member` has. Never raises: what is not given back ends by itself."""
        ...
