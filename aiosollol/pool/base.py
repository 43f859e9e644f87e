"""`PoolBase`: the life of a pool, its nodes, and what it knows of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self, Unpack

from aiosollol.cluster.event_hub import EventStream
from aiosollol.config.settings import PoolSettings, RoutingStrategy
from aiosollol.core.agreement import Agreement
from aiosollol.core.arguments import (
    PlanArguments,
    SizeArguments,
)
from aiosollol.core.node import ClusterView, NodeLike, NodeSpec, NodeState
from aiosollol.core.routing.explain import RouteExplanation
from aiosollol.core.routing.strategies import RoutingFunction
from aiosollol.core.scheduling.parallelism import DEFAULT_SIZES, ParallelismEntry
from aiosollol.core.scheduling.planner import Plan
from aiosollol.errors import SollolError
from aiosollol.net.transport import HttpTransport
from aiosollol.pool.admin import Usage
from aiosollol.pool.assembly import make_parts
from aiosollol.pool.registry import NodeRegistry
from aiosollol.ports import Tracing, Transport


class PoolBase:
    """A pool without its requests. Use `OllamaPool`, which describes the arguments."""

    def __init__(
        self,
        nodes: Iterable[NodeLike] | NodeRegistry | None = None,
        *,
        require_digest: Mapping[str, str] | None = None,
        routing_strategy: RoutingStrategy | RoutingFunction | None = None,
        transport_factory: Callable[[NodeSpec], Transport] = HttpTransport,
        tracing: Tracing | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        parts = make_parts(
            nodes, settings, require_digest, routing_strategy, transport_factory, tracing
        )
        self._registry = parts.registry
        self._lifecycle = parts.lifecycle
        self._embedder = parts.embedder
        self._generation = parts.generation
        self._collections = parts.collections
        self._operations = parts.operations
        self._engine_batches = parts.engine_batches
        self.gateway_access = parts.gateway_access  # for aiosollol.gateway alone; it may change

    def __repr__(self) -> str:
        nodes = ", ".join(repr(node)[6:-1] for node in self._registry)
        return f"<{type(self).__name__} {self._lifecycle.state.name}: {nodes}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        # On an exception, don't wait for other tasks' calls.
        await self.aclose(None if kind is None else 0.0)

    async def start(self) -> None:
        """Start to watch the nodes. Returns at once: calls wait for the first node if needed.

        Idempotent. Raises PoolClosed if the pool was closed.
        """
        self._lifecycle.start()

    async def aclose(self, wait: float | None = None) -> None:
        """Wait for calls in progress, end the rest, and close every connection. Idempotent.

        wait: seconds that other tasks' calls have to finish; the setting `close_timeout` if None.
        Unfinished calls then raise PoolClosed; new calls raise it at once.
        """
        await self._lifecycle.aclose(wait)

    @property
    def view(self) -> ClusterView:
        """A frozen snapshot of every node."""
        return self._registry.view

    def get_stats(self) -> dict[str, Any]:
        """Exact statistics so far. See `core.stats.pool_stats` for the keys; each enabled engine
        adds one of its own name."""
        return self._operations.stats() | self._engine_batches.stats()

    async def refresh(self) -> ClusterView:
        """Probe every node, and return the new view. Takes at most 7 s."""
        await self._operations.refresh()
        return self.view

    def events(self) -> EventStream:
        """Events from now on, as an async iterator: decisions, failures, breakers, model loads; see
        `core.events`. Ends when the pool is closed."""
        return self._operations.events()

    async def add_node(
        self, node: NodeLike, name: str = "", priority: int = 0, auto_probe: bool = True
    ) -> NodeState:
        """Add a node, which joins running batches too. See `NodeRegistry.add_node`."""
        return await self._operations.add_node(node, name, priority, auto_probe)

    async def remove_node(self, node: str) -> None:
        """Remove a node, by name or URL. Its requests move to other nodes; `drain` it first to let
        them finish. Raises InvalidInput if there is no such node."""
        self._operations.remove_node(node)

    async def drain(self, node: str, on_wait: Callable[[int], None] | None = None) -> None:
        """Give a node no more work, and return when nothing is in flight. `resume` undoes it.

        on_wait: called with the number of requests left. Raises InvalidInput if there is no such
        node.
        """
        await self._operations.drain(node, on_wait)

    def resume(self, node: str) -> None:
        """Give a drained node work again. Raises InvalidInput if there is no such node."""
        self._operations.resume(node)

    def allow(self, places: Mapping[str, int] | None) -> None:
        """Limit the requests in flight on nodes: node name -> slots. None lifts all limits.

        For programs that share nodes. Requests in flight go on, and the user's `max_concurrency`
        still applies.
        """
        self._operations.allow(places)

    def usage(self) -> Mapping[str, Usage]:
        """Node name -> how many requests of this pool are in flight, and how many it wants."""
        return self._operations.usage()

    async def warm(
        self, model: str, nodes: Iterable[str] | None = None
    ) -> dict[str, float | SollolError]:
        """Load a model ahead on all nodes that have it, or on `nodes`: node -> seconds or error.

        Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        return await self._operations.warm(model, nodes)

    async def verify(self, model: str) -> Agreement:
        """Compare the vectors of a few texts between all nodes, embedded singly and in a list.

        Nodes whose cosine similarity to the others is below 0.999, or with NaN, no longer embed
        with this model, until another `verify` finds that they agree, or its digest or the server's
        version changes there. Unless the setting `canary` is off, the pool compares two texts by
        itself. Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        return await self._operations.verify(model)

    async def route(
        self, model: str, *, kind: Literal["embed", "chat", "generate"] = "embed", tokens: float = 0
    ) -> RouteExplanation:
        """Where a request would go now, each node's score, and why others are not eligible.

        tokens: of the prompt. Nothing is sent. ``print`` the result, or read its attributes.
        """
        return await self._operations.route(model, kind, tokens)

    async def plan(self, model: str, items: int, **given: Unpack[PlanArguments]) -> Plan:
        """The plan for a batch of `items` texts now: which nodes, how long, and why.

        tokens_per_item: length of a text. force_mode: as for `embed_batch`. Raises InvalidInput,
        ModelNotFound, NoNodeAvailable.
        """
        return await self._operations.plan(model, items, **given)

    async def parallelism_report(
        self, model: str, sizes: Iterable[int] = DEFAULT_SIZES, **given: Unpack[SizeArguments]
    ) -> list[ParallelismEntry]:
        """For each batch size: the plan, both estimates, and the time saved.

        tokens_per_item: length of a text. Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        return await self._operations.parallelism_report(model, sizes, **given)

    def count_unique_physical_hosts(self) -> int:
        """The number of machines that the nodes run on, judged by addresses and labels."""
        return len(set(self._registry.machines.values()))

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """The original's rule: whether there are at least two tasks and two machines."""
        return self._operations.should_use_parallel_execution(num_tasks)
