"""Sends one embedding, chat or generate to the node that will answer it soonest.

`RequestRouter._perform` is the way of every live request: place, send, hedge, decide, answer.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar
from weakref import WeakSet

from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.blame import OUTAGE_PATIENCE
from aiosollol.core.events import Routed
from aiosollol.core.model_names import full_name
from aiosollol.core.routing.explain import Setback
from aiosollol.core.routing.hedge_policy import Hedging
from aiosollol.core.routing.retry import RetryBudget
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.routing.wait_queue import USUAL
from aiosollol.core.stats import CallCounters
from aiosollol.errors import NodeError, PoolClosed, RequestFailed
from aiosollol.live.admission import Admission
from aiosollol.live.calls import EmbedCall, TalkCall
from aiosollol.live.failures import FailureHandler, RequestFailures
from aiosollol.live.hedging import Hedger
from aiosollol.live.model_loader import Spawn
from aiosollol.live.node_client import NodeClient, promised_dim
from aiosollol.live.streaming import Part, ReplyStream
from aiosollol.ports import Trace
from aiosollol.wire.ollama.embeddings import EmbedAnswer

log = logging.getLogger("aiosollol")

_MAX_HOMES = 10_000

_Answer = TypeVar("_Answer")
_Send: TypeAlias = Callable[[Node, RouteRequest, Trace | None, float], Awaitable[_Answer]]
"""One attempt on a node: takes the routed request, its trace, and a timeout in seconds."""


class LiveOptions(NamedTuple):
    """Options of all live requests. Durations are in seconds; see `Settings` for each."""

    max_retries: int = 3
    retry_budget: float = 0.2
    hedge_rate: float = 0.05
    first_byte_timeout: float = 120.0
    outage_patience: float = OUTAGE_PATIENCE
    stall_timeout: float = 60.0


class CallOptions(NamedTuple):
    """Options of one live request.

    timeout: seconds for all of it.
    priority: 1 to 10, see `core.routing.wait_queue`.
    sticky: names a conversation, whose requests should go to the node that has its prompt cache.
    is_patient: the timeout does not run while the request waits in line for a node; only
    `wait_timeout` bounds that.
    calls: number of calls of the pool that it counts for; 0 if they are counted elsewhere.
    """

    timeout: float
    priority: int = USUAL
    sticky: str | None = None
    is_patient: bool = False
    calls: int = 1


class RequestRouter:
    """Sends live requests to the nodes of a cluster.

    eligibility: says which nodes are fit for a model.
    admission: chooses one of them and takes a slot on it.
    node_client: sends to a node.
    spawn: runs a task of the pool.
    calls: counters of the pool's calls.
    """

    def __init__(
        self,
        cluster: ClusterState,
        eligibility: Eligibility,
        admission: Admission,
        node_client: NodeClient,
        options: LiveOptions,
        spawn: Spawn,
        rng: random.Random,
        calls: CallCounters | None = None,
    ) -> None:
        self.calls = CallCounters() if calls is None else calls
        self._cluster = cluster
        self._eligibility = eligibility
        self._admission = admission
        self._node_client = node_client
        self._first_byte_timeout = options.first_byte_timeout
        self._stall_timeout = options.stall_timeout
        self._budget = RetryBudget(options.retry_budget)
        policy = Hedging(options.hedge_rate)
        self._hedger = Hedger(
            cluster, admission, policy, self._budget, options.max_retries, spawn, self.calls
        )
        self._failures = FailureHandler(
            cluster,
            eligibility,
            admission,
            self._budget,
            rng,
            self.calls,
            max_retries=options.max_retries,
            outage_patience=options.outage_patience,
        )
        self._outages = self._failures.outages.by_model
        self._homes: dict[str, str] = {}
        self._reloaded: set[str] = set()
        self._active = 0
        # Weak: a stream that its reader drops without closing it is not kept.
        self._streams: WeakSet[ReplyStream[Any]] = WeakSet()

    @property
    def has_streams(self) -> bool:
        """Whether a stream is open."""
        return bool(self._streams)

    @property
    def is_busy(self) -> bool:
        """Whether a call is in progress, or a reader waits for the next part of a stream."""
        return self._active > 0 or any(stream.is_waiting for stream in self._streams)

    async def aclose(self) -> None:
        """Close the open streams."""
        for stream in list(self._streams):
            await stream.aclose(PoolClosed("the pool was closed during this stream"))

    def embed(self, call: EmbedCall, options: CallOptions) -> Coroutine[Any, Any, EmbedAnswer]:
        """The vectors of a call. Raises NodeError or RequestFailed."""
        return self._perform(call, call.request(), options, partial(self._embed, call))

    def converse(
        self, call: TalkCall[Part], options: CallOptions, setbacks: list[Setback] | None = None
    ) -> Coroutine[Any, Any, Part]:
        """A whole answer of chat or generate. Raises NodeError or RequestFailed.

        setbacks: is extended by the attempts that failed or were late, in order.
        """
        send = partial(self._node_client.converse, call)
        return self._perform(call, call.request(), options, send, setbacks)

    def open_stream(
        self, call: TalkCall[Part], options: CallOptions, setbacks: list[Setback] | None = None
    ) -> Coroutine[Any, Any, ReplyStream[Part]]:
        """A streamed answer whose first part has arrived. Raises NodeError or RequestFailed.

        setbacks: see `converse`.
        """
        request = call.request()._replace(can_move=False)
        return self._perform(call, request, options, partial(self._open_stream, call), setbacks)

    async def _perform(
        self,
        call: EmbedCall | TalkCall[Any],
        request: RouteRequest,
        options: CallOptions,
        send: _Send[_Answer],
        setbacks: list[Setback] | None = None,
    ) -> _Answer:
        """The answer to one live request: place, send, hedge, decide, answer."""
        cluster = self._cluster
        came = cluster.clock()
        deadline = came + options.timeout
        self._budget.request(came)
        trace = self._node_client.trace()
        if options.sticky is not None or call.options is not None or self._reloaded:
            request = request._replace(home=self._home(call, options.sticky))
        tried: set[str] = set()
        failures: RequestFailures | None = None

        def attempt(node: Node) -> Awaitable[_Answer]:
            return send(node, request, trace, deadline - cluster.clock())

        self._active += 1
        try:
            while True:
                # Place: choose a node, and take a slot on it.
                came = cluster.clock()
                try:
                    node = await self._admission.place(
                        request,
                        tried=tried,
                        deadline=deadline,
                        priority=options.priority,
                        is_patient=options.is_patient,
                    )
                except RequestFailed as error:
                    if failures is None and self._failures.outages.find(call.model):
                        failures = self._failures.of(request, tried, options.timeout)
                    if failures is None or not await failures.wait_for_node(error, deadline):
                        raise
                    continue
                if options.is_patient:
                    deadline += cluster.clock() - came
                self._announce(call, node, failures)
                # Send; hedge to another node if the answer is late.
                race = self._hedger.race(request, node, attempt, tried, call.options)
                try:
                    answer = await (attempt(node) if race is None else race.run(attempt(node)))
                except NodeError as error:
                    if self._eligibility.is_closed:
                        raise PoolClosed("the pool was closed during this call") from error
                    errors = [error] if race is None else race.failures
                    if setbacks is not None:
                        setbacks += map(Setback.of, errors)
                    # Decide: ask another node, ask again later, or give up.
                    if failures is None:
                        failures = self._failures.of(request, tried, options.timeout)
                    await failures.handle(node, errors, deadline)
                    continue
                # Answer.
                if race is not None:
                    race.learn()
                    if setbacks is not None:
                        race.add_setbacks(setbacks)
                    node = race.winner
                if self._outages:
                    self._failures.outages.answered(call.model, node.name)
                    if failures is not None:
                        failures.answered(node)
                if options.sticky is not None:
                    self._settle(options.sticky, node)
                if isinstance(answer, ReplyStream):
                    answer.follow(self.calls.ended)
                else:
                    self.calls.succeeded += options.calls
                return answer
        except BaseException as error:
            self.calls.ended(error, options.calls)
            raise
        finally:
            self._active -= 1
            if failures is not None:
                failures.close()

    # One attempt.

    def _embed(
        self,
        call: EmbedCall,
        node: Node,
        request: RouteRequest,
        trace: Trace | None,
        timeout: float,
    ) -> Coroutine[Any, Any, EmbedAnswer]:
        dim = promised_dim(node, call.model, call.dimensions)
        return self._node_client.embed(call, node, request, trace, timeout, dim=dim)

    async def _open_stream(
        self,
        call: TalkCall[Part],
        node: Node,
        request: RouteRequest,
        trace: Trace | None,
        timeout: float,
    ) -> ReplyStream[Part]:
        stream = await self._node_client.open_stream(
            call,
            node,
            request,
            trace,
            timeout,
            on_end=self._streams.discard,
            first_byte_timeout=self._first_byte_timeout,
            stall_timeout=self._stall_timeout,
        )
        self._streams.add(stream)
        return stream

    def _announce(
        self, call: EmbedCall | TalkCall[Any], node: Node, failures: RequestFailures | None
    ) -> None:
        """Report where a request goes, and the first time that a model is reloaded for one."""
        cluster = self._cluster
        if cluster.hub.is_watched:
            attempts = [] if failures is None else failures.attempts
            why = str(attempts[-1]) if attempts else ""
            cluster.tell(Routed(cluster.clock(), call.model, node.name, len(attempts) + 1, why))
        name = full_name(call.model)
        if name not in self._reloaded and node.reloads(name, call.options):
            self._reloaded.add(name)
            log.warning(
                "model %s is requested with different options (such as num_ctx): %s reloads it "
                "each time they change; use the same options in all requests",
                name,
                node.name,
            )

    # The home node of conversations and of models with options.

    def _home(self, call: EmbedCall | TalkCall[Any], sticky: str | None) -> str | None:
        if sticky is not None and sticky in self._homes:
            return self._homes[sticky]
        nodes = self._eligibility.ready(call.model)
        if not any(node.reloads(call.model, call.options) for node in nodes):
            return None  # all are alike, so let the strategy choose
        now = self._cluster.clock()
        warm = [node for node in nodes if not node.is_cold(call.model, call.options)]
        return min(warm, key=lambda node: node.ahead(now)).name if warm else None

    def _settle(self, sticky: str, node: Node) -> None:
        self._homes.pop(sticky, None)
        self._homes[sticky] = node.name
        if len(self._homes) > _MAX_HOMES:
            del self._homes[next(iter(self._homes))]
