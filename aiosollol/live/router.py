"""Live requests: one embedding, chat or generate, to the node that will answer it soonest."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakSet

from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.events import Routed
from aiosollol.core.node import full_name
from aiosollol.core.routing.explain import Setback
from aiosollol.core.routing.hedge_policy import Hedging
from aiosollol.core.routing.retry import Failure, RetryBudget, classify, decide
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.routing.wait_queue import USUAL
from aiosollol.errors import NodeError, NoNodeAvailable, PoolClosed, RequestFailed
from aiosollol.live.admission import Admission
from aiosollol.live.calls import EmbedCall, TalkCall
from aiosollol.live.hedging import HedgingClient
from aiosollol.live.model_loader import Spawn
from aiosollol.live.node_client import NodeClient, promised_dim
from aiosollol.live.streaming import Part, ReplyStream
from aiosollol.ports import Trace
from aiosollol.wire.ollama.embeddings import EmbedAnswer

log = logging.getLogger("aiosollol")

_MAX_HOMES = 10_000

_Answer = TypeVar("_Answer")
_Send: TypeAlias = Callable[[Node, RouteRequest, Trace | None, float], Awaitable[_Answer]]
"""One attempt on a node: of the request as it was routed, in its trace, within so many seconds."""


class LiveOptions(NamedTuple):
    """How live requests are treated. Durations are seconds; see `Settings` for each."""

    max_retries: int = 3
    retry_budget: float = 0.2
    hedge_rate: float = 0.05
    first_byte_timeout: float = 120.0


class CallOptions(NamedTuple):
    """What a caller wishes for one request. timeout: seconds for all of it.

    priority: 1 to 10, see `core.routing.wait_queue`. sticky: names a conversation, whose requests
    should go to the node that has its prompt cache. is_patient: the timeout does not run while it
    waits in line for a node, which `wait_timeout` alone bounds.
    """

    timeout: float
    priority: int = USUAL
    sticky: str | None = None
    is_patient: bool = False


class RequestRouter:
    """Sends live requests over the nodes of a registry.

    roster: says which are fit for a model. admission: chooses among them. exchange: sends.
    spawn: runs a task of the pool.
    """

    def __init__(
        self,
        registry: ClusterState,
        roster: Eligibility,
        admission: Admission,
        exchange: NodeClient,
        options: LiveOptions,
        spawn: Spawn,
        rng: random.Random,
    ) -> None:
        self._registry = registry
        self._roster = roster
        self._admission = admission
        self._exchange = exchange
        self._options = options
        self._budget = RetryBudget(options.retry_budget)
        hedging = Hedging(options.hedge_rate)
        self._chaser = HedgingClient(
            registry, admission, hedging, self._budget, options.max_retries, spawn
        )
        self._rng = rng
        self._homes: dict[str, str] = {}
        self._reloaded: set[str] = set()
        self._active = 0
        # Weak: who drops a stream without closing it is to be done with it.
        self._streams: WeakSet[ReplyStream[Any]] = WeakSet()

    @property
    def has_streams(self) -> bool:
        """Whether a stream is open."""
        return bool(self._streams)

    @property
    def is_busy(self) -> bool:
        """Whether a call is under way, or somebody waits for the next part of a stream."""
        return self._active > 0 or any(stream.is_waiting for stream in self._streams)

    async def aclose(self) -> None:
        """Close the streams that are still open."""
        for stream in list(self._streams):
            await stream.aclose(PoolClosed("the pool was closed during this stream"))

    async def embed(self, call: EmbedCall, wishes: CallOptions) -> EmbedAnswer:
        """The vectors of a call. Raises NodeError or RequestFailed."""

        def send(
            node: Node, request: RouteRequest, trace: Trace | None, timeout: float
        ) -> Awaitable[EmbedAnswer]:
            dim = promised_dim(node, call.model, call.dimensions)
            return self._exchange.embed(call, node, request, trace, timeout, dim=dim)

        return await self._run(call, call.request(), wishes, send)

    async def converse(
        self, call: TalkCall[Part], wishes: CallOptions, setbacks: list[Setback] | None = None
    ) -> Part:
        """A whole answer of chat or generate. Raises NodeError or RequestFailed.

        setbacks: gets those attempts that failed or were late, in their order.
        """
        send = partial(self._exchange.converse, call)
        return await self._run(call, call.request(), wishes, send, setbacks)

    async def open_stream(
        self, call: TalkCall[Part], wishes: CallOptions, setbacks: list[Setback] | None = None
    ) -> ReplyStream[Part]:
        """A streamed answer whose first part has arrived. Raises NodeError or RequestFailed.

        setbacks: see `converse`.
        """

        async def send(
            node: Node, request: RouteRequest, trace: Trace | None, timeout: float
        ) -> ReplyStream[Part]:
            stream = await self._exchange.open_stream(
                call,
                node,
                request,
                trace,
                timeout,
                on_end=self._streams.discard,
                first_byte_timeout=self._options.first_byte_timeout,
            )
            self._streams.add(stream)
            return stream

        request = call.request()._replace(can_move=False)
        return await self._run(call, request, wishes, send, setbacks)

    async def _run(
        self,
        call: EmbedCall | TalkCall[Any],
        request: RouteRequest,
        wishes: CallOptions,
        send: _Send[_Answer],
        setbacks: list[Setback] | None = None,
    ) -> _Answer:
        """Send to the best node; on failure, to others as far as `core.routing.retry` allows."""
        registry = self._registry
        now = registry.clock()
        deadline = now + wishes.timeout
        self._budget.request(now)
        trace = self._exchange.trace()
        if wishes.sticky is not None or call.options is not None or self._reloaded:
            request = request._replace(home=self._home(call, wishes.sticky))
        attempts: list[NodeError] = []
        tried: set[str] = set()

        async def attempt(node: Node) -> _Answer:
            try:
                return await send(node, request, trace, deadline - registry.clock())
            except NodeError as error:
                if setbacks is not None:
                    setbacks.append(Setback.of(error))
                raise

        self._active += 1
        try:
            while True:
                came = registry.clock()
                try:
                    node = await self._admission.place(
                        request,
                        tried=tried,
                        deadline=deadline,
                        priority=wishes.priority,
                        is_patient=wishes.is_patient,
                    )
                except RequestFailed as error:
                    error.attempts = tuple(attempts)
                    raise
                now = registry.clock()
                if wishes.is_patient:
                    deadline += now - came
                if registry.hub.is_watched:
                    why = str(attempts[-1]) if attempts else ""
                    registry.tell(Routed(now, call.model, node.name, len(attempts) + 1, why))
                self._notice_reload(call, node)
                try:
                    answer, winner = await self._chaser.send(
                        request, node, attempt, tried, call.options
                    )
                except NodeError as error:
                    if self._roster.is_closed:
                        raise PoolClosed("the pool was closed during this call") from error
                    attempts.append(error)
                    tried.add(node.name)
                    wait = self._after(error, request, attempts, tried, deadline)
                    if wait:
                        await self._roster.pause(wait)
                        tried.clear()
                    continue
                if (
                    winner is not node
                    and setbacks is not None
                    and all(each.node != node.name for each in setbacks)
                ):
                    setbacks.append(Setback(node.name))
                if wishes.sticky is not None:
                    self._settle(wishes.sticky, winner)
                return answer
        finally:
            self._active -= 1

    def _after(
        self,
        error: NodeError,
        request: RouteRequest,
        attempts: Sequence[NodeError],
        tried: set[str],
        deadline: float,
    ) -> float:
        """Seconds to wait before the next attempt, 0 for another node. Raises to give up."""
        decision = decide(
            error,
            failures=len(attempts),
            others=any(node.name not in tried for node in self._admission.eligible(request)),
            now=self._registry.clock(),
            deadline=deadline,
            budget=self._budget,
            rng=self._rng,
            max_retries=self._options.max_retries,
        )
        log.debug("%s: %s (%s)", request.model, decision.action, decision.reason)
        if decision.action == "other":
            return 0.0
        if decision.action == "later":
            return max(decision.after, 1e-3)
        if classify(error) is Failure.INPUT:
            raise error
        if classify(error) is Failure.MODEL and not self._roster.ready(request.model):
            failed = self._roster.nobody(request.model)
            failed.attempts = tuple(attempts)
            raise failed from error
        nodes = {each.node: each.detail for each in attempts}
        raise NoNodeAvailable(
            f"every node that was asked failed: {decision.reason}", nodes, attempts
        ) from error

    # Where conversations and options are at home.

    def _home(self, call: EmbedCall | TalkCall[Any], sticky: str | None) -> str | None:
        if sticky is not None and sticky in self._homes:
            return self._homes[sticky]
        nodes = self._roster.ready(call.model)
        if not any(node.reloads(call.model, call.options) for node in nodes):
            return None  # all are alike, so let the strategy choose among all
        now = self._registry.clock()
        warm = [node for node in nodes if not node.is_cold(call.model, call.options)]
        return min(warm, key=lambda node: node.ahead(now)).name if warm else None

    def _settle(self, sticky: str, node: Node) -> None:
        self._homes.pop(sticky, None)
        self._homes[sticky] = node.name
        if len(self._homes) > _MAX_HOMES:
            del self._homes[next(iter(self._homes))]

    def _notice_reload(self, call: EmbedCall | TalkCall[Any], node: Node) -> None:
        name = full_name(call.model)
        if name not in self._reloaded and node.reloads(name, call.options):
            self._reloaded.add(name)
            log.warning(
                "model %s is asked for with different options (such as num_ctx): %s has to load it "
                "anew each time they change; use the same in all requests",
                name,
                node.name,
            )
