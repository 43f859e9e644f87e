"""What an operator does with a running pool: its nodes, its models, its decisions, its plans."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from random import Random
from typing import Literal, NamedTuple

from aiosollol.batches import Batches
from aiosollol.care import Care
from aiosollol.core.agreement import Agreement
from aiosollol.core.explain import RouteExplanation, explain
from aiosollol.core.node import ClusterView, NodeLike, NodeState
from aiosollol.core.parallelism import (
    DEFAULT_SIZES,
    DEFAULT_TOKENS_PER_ITEM,
    ParallelismEntry,
    is_parallel_worthwhile,
    parallelism_report,
)
from aiosollol.core.planner import BatchShape, ForceMode, Plan, PlanOptions
from aiosollol.core.request import check_model
from aiosollol.core.routing import RouteRequest, RoutingFunction
from aiosollol.errors import InvalidInput, RequestFailed, SollolError
from aiosollol.events import EventStream
from aiosollol.node_registry import NodeRegistry
from aiosollol.roster import Roster

log = logging.getLogger("aiosollol")


class Usage(NamedTuple):
    """What a program does at a node. using: requests under way. wants: those that wait as well."""

    using: int
    wants: int


class Operations:
    """Base of the pool: what it needs is set by the pool. Not meant to be used by itself."""

    _registry: NodeRegistry
    _roster: Roster
    _care: Care
    _batches: Batches
    _planning: PlanOptions
    _strategy: RoutingFunction
    _strategy_name: str
    _rng: Random

    def _check_open(self) -> None:
        raise NotImplementedError

    # What is known.

    @property
    def view(self) -> ClusterView:
        """Every node as known now, frozen."""
        return self._registry.view

    async def refresh(self) -> ClusterView:
        """Ask every node again what it has, and return what is known then.

        Takes as long as the slowest node does, 7 s at most.
        """
        self._check_open()
        await self._roster.probe_all()
        return self.view

    def events(self) -> EventStream:
        """What happens from now on, as an async iterator: decisions, failures, breakers, loads.

        Ends when the pool is closed. See `core.events` for the values.
        """
        self._check_open()
        return self._registry.hub.watch()

    async def add_node(
        self, node: NodeLike, name: str = "", priority: int = 0, auto_probe: bool = True
    ) -> NodeState:
        """Add a node, which takes part in what is under way. See `NodeRegistry.add_node`."""
        self._check_open()
        added = await self._registry.add_node(node, name, priority, auto_probe)
        return added.state

    async def remove_node(self, node: str) -> None:
        """Forget a node, by name or URL. What it has under way is done by others.

        To let it finish that first, `drain` it. Raises InvalidInput if there is none.
        """
        self._check_open()
        self._registry.remove_node(node)

    async def drain(self, node: str, on_wait: Callable[[int], None] | None = None) -> None:
        """Give a node no more work, and return when it has none under way. `resume` undoes it.

        on_wait: told how many requests it still has. Raises InvalidInput if there is none.
        """
        self._check_open()
        await self._care.drain(node, on_wait)

    def resume(self, node: str) -> None:
        """Let a node that was drained work again. Raises InvalidInput if there is none."""
        self._check_open()
        self._care.resume(node)

    def allow(self, places: Mapping[str, int] | None) -> None:
        """Have at most so many requests under way at once on each node that is named, by name.

        For programs that share nodes. What is under way goes on. None lifts it from all nodes; what
        the user set as `max_concurrency` holds all the same.
        """
        for node in self._registry:
            if places is None:
                node.allow(None)
            elif node.name in places:
                node.allow(places[node.name])

    def usage(self) -> Mapping[str, Usage]:
        """By node name, how many requests of this pool are under way, and how many would be."""
        return {node.name: Usage(node.in_flight, node.wanted) for node in self._registry}

    async def warm(
        self, model: str, nodes: Iterable[str] | None = None
    ) -> dict[str, float | SollolError]:
        """Load a model ahead, on every node that has it or on those named.

        Returns node -> seconds until it was in memory, or the error. Raises InvalidInput,
        ModelNotFound, NoNodeAvailable.
        """
        self._check_open()
        check_model(model)
        return await self._care.warm(model, nodes)

    async def verify(self, model: str) -> Agreement:
        """Compare the vectors of a few texts between all nodes, alone and in a list.

        Nodes whose cosine similarity to the others is below 0.999 are kept out of embedding with
        this model from then on, until another `verify` finds them equal. Raises InvalidInput,
        ModelNotFound, NoNodeAvailable.
        """
        self._check_open()
        check_model(model)
        return await self._care.verify(model)

    async def route(
        self, model: str, *, kind: Literal["embed", "chat", "generate"] = "embed", tokens: float = 0
    ) -> RouteExplanation:
        """Which node a request would go to now, each node's terms, and why others would not do.

        tokens: of the prompt. Nothing is sent. ``print`` it, or read its attributes.
        """
        self._check_open()
        check_model(model)
        if kind not in ("embed", "chat", "generate"):
            raise InvalidInput(f"kind must be 'embed', 'chat' or 'generate', not {kind!r}")
        if not isinstance(tokens, int | float) or not 0 <= tokens < math.inf:
            raise InvalidInput(f"tokens must be a number from 0 on, not {tokens!r}")
        with contextlib.suppress(RequestFailed):
            await self._roster.wait_ready(model, patient=True)
        digest = None
        if kind == "embed":
            with contextlib.suppress(RequestFailed):
                self._roster.comparable(model)
            digest = self._roster.digest_in_use(model)
        return explain(
            self._strategy,
            self._strategy_name,
            list(self._registry),
            RouteRequest(model, tokens, kind, digest=digest),
            self._registry.clock(),
            self._rng,
        )

    # Planning.

    async def plan(
        self,
        model: str,
        items: int,
        *,
        tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
        force_mode: ForceMode | None = None,
    ) -> Plan:
        """What would be done now with a batch of `items` texts: which nodes, how long, and why.

        Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        self._check_open()
        check_model(model)
        if not isinstance(items, int) or items < 1:
            raise InvalidInput(f"items must be a whole number from 1 on, not {items!r}")
        options = replace(self._planning, force_mode=force_mode)
        return await self._batches.plan(model, BatchShape(items, items * tokens_per_item), options)

    async def parallelism_report(
        self,
        model: str,
        sizes: Iterable[int] = DEFAULT_SIZES,
        *,
        tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
    ) -> list[ParallelismEntry]:
        """For each batch size: the plan, both estimates, and what the plan saves.

        Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        self._check_open()
        check_model(model)
        nodes = await self._batches.ready_nodes(model)
        return parallelism_report(
            self._registry.candidates(model, nodes),
            sizes,
            tokens_per_item=tokens_per_item,
            options=self._planning,
            verdicts=self._registry.verdicts(model),
        )

    def count_unique_physical_hosts(self) -> int:
        """How many machines the nodes are, as far as their addresses and labels tell."""
        return len(set(self._registry.machines.values()))

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """The original's rule: whether there are at least two tasks and two machines."""
        is_worthwhile, why = is_parallel_worthwhile(num_tasks, self._registry.machines)
        log.debug("parallel execution %s: %s", "yes" if is_worthwhile else "no", why)
        return is_worthwhile
