"""Administration of a running pool: nodes, models, routing decisions, plans."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

import anyio

from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.event_hub import EventStream
from aiosollol.cluster.node import Node
from aiosollol.core.agreement import CANARIES, Agreement, Vectors, compare
from aiosollol.core.model_names import full_name
from aiosollol.core.node import NodeLike, NodeState
from aiosollol.core.redaction import safe_repr
from aiosollol.core.request import EmbedSettings, check_model
from aiosollol.core.routing.explain import RouteExplanation, explain
from aiosollol.core.routing.strategies import RouteRequest, RoutingFunction
from aiosollol.core.scheduling.parallelism import (
    DEFAULT_TOKENS_PER_ITEM,
    ParallelismEntry,
    is_parallel_worthwhile,
    parallelism_report,
)
from aiosollol.core.scheduling.planner import (
    BatchShape,
    ForceMode,
    Plan,
    PlanOptions,
)
from aiosollol.core.stats import CallCounters, pool_stats
from aiosollol.errors import (
    InvalidInput,
    NodeError,
    NoNodeAvailable,
    PoolClosed,
    RequestFailed,
    SollolError,
)
from aiosollol.live.calls import GENERATE_PATH, EmbedCall, TalkCall
from aiosollol.live.node_client import NodeClient
from aiosollol.pool.lifecycle import OpenState
from aiosollol.pool.registry import NodeRegistry
from aiosollol.wire.ollama.chat import load_text
from aiosollol.wire.ollama.embeddings import dump_embed, fits_base64, has_nan

log = logging.getLogger("aiosollol")

_VERIFY_SECONDS = 60.0


class Usage(NamedTuple):
    """A program's use of a node. using: requests in flight. wants: including those that wait."""

    using: int
    wants: int


class Strategy(NamedTuple):
    """The routing function for live requests, and its name."""

    function: RoutingFunction
    name: str


class PoolAdmin:
    """Operations on the nodes of a pool: see the methods of the same names on `OllamaPool`.

    eligibility, node_client, batches: shared with the pool's calls.
    strategy: routes live requests.
    planning: options for planning batches.
    state: whether the pool is open.
    calls: counters of the pool's calls; None if every request to a node is one.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        eligibility: Eligibility,
        node_client: NodeClient,
        batches: BatchRunner,
        strategy: Strategy,
        planning: PlanOptions,
        rng: Random,
        state: OpenState,
        calls: CallCounters | None = None,
    ) -> None:
        self._calls = calls
        self._registry = registry
        self._eligibility = eligibility
        self._node_client = node_client
        self._batches = batches
        self._strategy = strategy
        self._planning = planning
        self._rng = rng
        self._state = state
        self._check_open = state.check

    # State.

    def stats(self) -> dict[str, Any]:
        """Statistics so far; see `core.stats.pool_stats`."""
        now = self._registry.clock() if self._state.name == "open" else 0.0
        return pool_stats(
            [node.stats(now) for node in self._registry],
            strategy=self._strategy.name,
            plans=self._batches.plans,
            states=[node.state for node in self._registry],
            calls=self._calls,
        )

    def events(self) -> EventStream:
        """Events from now on, as an async iterator."""
        self._check_open()
        return self._registry.hub.watch()

    # Nodes.

    async def add_node(
        self, node: NodeLike, name: str, priority: int, auto_probe: bool
    ) -> NodeState:
        """Add a node, which joins running batches too."""
        self._check_open()
        return (await self._registry.add_node(node, name, priority, auto_probe)).state

    def remove_node(self, node: str) -> None:
        """Remove a node, by name or URL."""
        self._check_open()
        self._registry.remove_node(node)

    async def refresh(self) -> None:
        """Probe every node."""
        self._check_open()
        await self._eligibility.probe_all()

    async def drain(self, name: str, on_wait: Callable[[int], None] | None = None) -> None:
        """Give a node no more work, and return when nothing is in flight on it."""
        self._check_open()
        node = self._registry.find(name)
        self._registry.drain(node)
        told = -1
        while node.in_flight:
            if on_wait is not None and node.in_flight != told:
                told = node.in_flight
                on_wait(told)
            await node.wait_left()

    def resume(self, name: str) -> None:
        """Give a drained node work again."""
        self._check_open()
        self._registry.resume(self._registry.find(name))

    def allow(self, places: Mapping[str, int] | None) -> None:
        """Limit the requests in flight: node name -> slots; None lifts all limits."""
        for node in self._registry:
            if places is None:
                node.allow(None)
            elif node.name in places:
                node.allow(places[node.name])

    def usage(self) -> Mapping[str, Usage]:
        """This pool's use of each node, by name."""
        return {node.name: Usage(node.in_flight, node.wanted) for node in self._registry}

    # Models.

    async def warm(self, model: str, names: Iterable[str] | None) -> dict[str, float | SollolError]:
        """Node -> seconds until `model` was loaded, or the error."""
        self._check_open()
        check_model(model)
        if names is None:
            await self._eligibility.probe_all()  # so that slower nodes are included too
            nodes: Sequence[Node] = await self._eligibility.wait_ready(model, patient=True)
        elif isinstance(names, str):
            shown = safe_repr(names)
            raise InvalidInput(f"nodes must be a list, even of one node: nodes=[{shown}]")
        elif not isinstance(names, Iterable):
            raise InvalidInput(f"nodes must be a list of names, not {safe_repr(names)}")
        else:
            nodes = [self._registry.find(name) for name in names]
        results: dict[str, float | SollolError] = {}

        async def load(node: Node) -> None:
            began = self._registry.clock()
            try:
                # Loaded for generation, or for embedding if the model can do nothing else.
                talk = TalkCall(GENERATE_PATH, "generate", model, b"", load_text, 0.0)
                await self._node_client.load(node, talk, self._call(model, []))
                results[node.name] = self._registry.clock() - began
            except SollolError as error:  # a task group would wrap it in an ExceptionGroup
                results[node.name] = error

        async with anyio.create_task_group() as group:
            for node in nodes:
                group.start_soon(load, node)
        self._check_still_open()
        return {node.name: results[node.name] for node in nodes}

    async def verify(self, model: str) -> Agreement:
        """How well the nodes agree on the vectors of `model`. Outliers are distrusted from now on.

        The reference is a node whose vectors are in use: the question is which others may join.
        """
        self._check_open()
        check_model(model)
        nodes = await self._eligibility.wait_ready(model, patient=True)
        name = full_name(model)
        in_use: Collection[Node] = ()
        with contextlib.suppress(NoNodeAvailable):
            in_use = self._eligibility.comparable(model)
        # Of two nodes that differ, the one used first is the reference.
        by_use = sorted(in_use, key=lambda node: node.embeds.get(name, math.inf))
        alone: dict[str, Vectors] = {}
        listed: dict[str, Vectors] = {}
        failed: dict[str, str] = {}
        invalid: dict[str, str] = {}

        async def ask(node: Node) -> None:
            try:
                singles = [await self._vectors(node, model, [text]) for text in CANARIES]
                listed[node.name] = await self._vectors(node, model, CANARIES)
                alone[node.name] = [vector for vectors in singles for vector in vectors]
            except SollolError as error:
                is_invalid = isinstance(error, NodeError) and has_nan(error)
                (invalid if is_invalid else failed)[node.name] = str(error)

        async with anyio.create_task_group() as group:
            for node in nodes:
                group.start_soon(ask, node)
        self._check_still_open()
        own = [node.name for node in by_use if node.name in alone]
        if alone:
            alone.update((each, ()) for each in invalid)
            listed.update((each, ()) for each in invalid)
        else:
            failed |= invalid
        order = [node.name for node in nodes if node.name in alone]
        agreement = compare(
            model,
            {each: alone[each] for each in order},
            {each: listed[each] for each in order},
            {node.name: node.digest(model) for node in nodes},
            failed,
            own or [each for each in order if each not in invalid],
        )
        self._distrust(name, nodes, agreement)
        return agreement

    def _check_still_open(self) -> None:
        # Errors caused by closing the pool say nothing about the nodes.
        if self._eligibility.is_closed:
            raise PoolClosed("the pool was closed during this call")

    def _distrust(self, name: str, nodes: Iterable[Node], agreement: Agreement) -> None:
        for node in nodes:
            is_outlier = node.name in agreement.outliers
            if is_outlier or node.name not in agreement.failed:
                self._registry.trust(node, name, is_right=not is_outlier)
        if agreement.outliers:
            log.warning(
                "vectors of %s on %s differ from those of the other nodes: left out of batches",
                name,
                ", ".join(agreement.outliers),
            )

    async def _vectors(self, node: Node, model: str, texts: Sequence[str]) -> Vectors:
        call, trace = self._call(model, texts), self._node_client.trace()
        await node.enter()
        answer = await self._node_client.embed(
            call, node, call.request(), trace, _VERIFY_SECONDS, is_live=False
        )
        floats = memoryview(answer.floats).cast("B").cast("f").tolist()
        return [floats[i * answer.dim : (i + 1) * answer.dim] for i in range(len(texts))]

    def _call(self, model: str, texts: Sequence[str]) -> EmbedCall:
        settings = EmbedSettings(model=model)
        return EmbedCall(
            model=model,
            texts=texts,
            body=dump_embed(settings, texts),
            fits_base64=fits_base64(settings),
            tokens=self._registry.ratio(model).tokens_of(texts),
        )

    # Decisions and plans.

    async def route(self, model: str, kind: str, tokens: float) -> RouteExplanation:
        """Where a request would go now, each node's score, and why others are not eligible."""
        self._check_open()
        check_model(model)
        if kind not in ("embed", "chat", "generate"):
            raise InvalidInput(f"kind must be 'embed', 'chat' or 'generate', not {kind!r}")
        if not isinstance(tokens, int | float) or not 0 <= tokens < math.inf:
            raise InvalidInput(f"tokens must be a number of at least 0, not {tokens!r}")
        with contextlib.suppress(RequestFailed):
            await self._eligibility.wait_ready(model, patient=True)
        digest = None
        if kind == "embed":
            with contextlib.suppress(RequestFailed):
                self._eligibility.comparable(model)
            digest = self._eligibility.digest_in_use(model)
        return explain(
            self._strategy.function,
            self._strategy.name,
            list(self._registry),
            RouteRequest(model, tokens, kind, digest=digest),
            self._registry.clock(),
            self._rng,
        )

    async def plan(
        self,
        model: str,
        items: int,
        *,
        tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
        force_mode: ForceMode | None = None,
    ) -> Plan:
        """The plan for a batch of `items` texts now: which nodes, how long, and why."""
        self._check_open()
        check_model(model)
        if not isinstance(items, int) or items < 1:
            raise InvalidInput(f"items must be a whole number of at least 1, not {items!r}")
        options = replace(self._planning, force_mode=force_mode)
        return await self._batches.plan(model, BatchShape(items, items * tokens_per_item), options)

    async def parallelism_report(
        self,
        model: str,
        sizes: Iterable[int],
        *,
        tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
    ) -> list[ParallelismEntry]:
        """For each batch size: the plan, both estimates, and the time saved."""
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

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """The original's rule: whether there are at least two tasks and two machines."""
        is_worthwhile, why = is_parallel_worthwhile(num_tasks, self._registry.machines)
        log.debug("parallel execution %s: %s", "yes" if is_worthwhile else "no", why)
        return is_worthwhile
