"""Live requests: one embedding, chat or generate, to the node that will answer it soonest."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import anyio

from aiosollol.admission import Admission
from aiosollol.core.events import Hedged, Routed
from aiosollol.core.hedging import Hedging
from aiosollol.core.node import full_name
from aiosollol.core.resilience import Failure, classify
from aiosollol.core.retry import RetryBudget, decide
from aiosollol.core.routing import RouteRequest
from aiosollol.core.waiting import USUAL
from aiosollol.errors import NodeError, NoNodeAvailable, PoolClosed, RequestFailed
from aiosollol.exchange import EmbedCall, Exchange, Part, TalkCall
from aiosollol.hedge import Hedger, Race
from aiosollol.loads import Spawn
from aiosollol.nodes import Node
from aiosollol.registry import Registry
from aiosollol.roster import Roster
from aiosollol.streams import ReplyStream
from aiosollol.wire.embed import EmbedAnswer

log = logging.getLogger("aiosollol")

_PATIENCE_SECONDS, _PATIENCE = 10.0, 20.0
"""An attempt at an embedding is given up after 20 times what was predicted, and 10 s at least: what
hangs must not cost the caller the whole of his time."""

_MAX_HOMES = 10_000

_Answer = TypeVar("_Answer")


class LiveOptions(NamedTuple):
    """How live requests are treated. Durations are seconds; see `Settings` for each."""

    max_retries: int = 3
    retry_budget: float = 0.2
    hedge_rate: float = 0.05
    first_byte_timeout: float = 120.0


class Wishes(NamedTuple):
    """What a caller wishes for one request. timeout: seconds for all of it.

    priority: 1 to 10, see `core.waiting`. sticky: names a conversation, whose requests should go
    to the node that has its prompt cache.
    """

    timeout: float
    priority: int = USUAL
    sticky: str | None = None


class LiveCalls:
    """Sends live requests over the nodes of a registry.

    roster: says which are fit for a model. admission: chooses among them. exchange: sends.
    spawn: runs a task of the pool.
    """

    def __init__(
        self,
        registry: Registry,
        roster: Roster,
        admission: Admission,
        exchange: Exchange,
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
        self._hedging = Hedging(options.hedge_rate)
        self._hedger = Hedger(registry.clock, spawn)
        self._rng = rng
        self._homes: dict[str, str] = {}
        self._reloaded: set[str] = set()
        # Weak: who drops a stream without closing it is to be done with it.
        self._streams: WeakSet[ReplyStream[Any]] = WeakSet()

    async def aclose(self) -> None:
        """Close the streams that are still open."""
        for stream in list(self._streams):
            # One that a task is waiting on ends there, when its connection is closed under it.
            if not stream.is_waiting:
                await stream.aclose(PoolClosed("the pool was closed during this stream"))

    async def embed(self, call: EmbedCall, wishes: Wishes) -> EmbedAnswer:
        """The vectors of a call. Raises NodeError or RequestFailed."""
        return await self._run(call, wishes, partial(self._embed, call))

    async def converse(self, call: TalkCall[Part], wishes: Wishes) -> Part:
        """A whole answer of chat or generate. Raises NodeError or RequestFailed."""

        async def send(node: Node, left: float) -> Part:
            call.timeout = left
            return await self._exchange.converse(call, node)

        return await self._run(call, wishes, send)

    async def open_stream(self, call: TalkCall[Part], wishes: Wishes) -> ReplyStream[Part]:
        """A streamed answer whose first part has arrived. Raises NodeError or RequestFailed."""

        async def send(node: Node, left: float) -> ReplyStream[Part]:
            call.timeout = left
            stream = await self._exchange.open_stream(
                call, node, self._streams.discard, self._options.first_byte_timeout
            )
            self._streams.add(stream)
            return stream

        return await self._run(call, wishes, send)

    async def _embed(self, call: EmbedCall, node: Node, left: float) -> EmbedAnswer:
        """One attempt, and perhaps a second one beside it."""
        now = self._registry.clock()
        seconds = node.seconds(call.request)
        is_cold = node.is_cold(call.model, call.options)
        if seconds is None or is_cold:
            call.timeout = left
            return await self._exchange.embed(call, node)
        predicted = node.ahead(now) + seconds
        call.timeout = min(left, max(_PATIENCE_SECONDS, _PATIENCE * predicted))
        after = self._hedging.after(predicted) if len(self._registry) > 1 else None
        if after is None:
            answer = await self._exchange.embed(call, node)
        else:
            answer = await self._race(call, node, now + after)
        self._hedging.observe(self._registry.clock() - now, predicted)
        return answer

    async def _race(self, call: EmbedCall, node: Node, due: float) -> EmbedAnswer:
        async def second() -> EmbedAnswer | None:
            other = self._admission.try_place(call.request, (node.name,))
            if other is None:
                return None
            if not self._hedging.take():
                other.leave()
                return None
            now = self._registry.clock()
            self._registry.tell(Hedged(now, call.model, node.name, other.name))
            return await self._exchange.embed(call, other)

        race: Race[EmbedAnswer] = Race(due, second)
        self._hedger.enter(race)
        try:
            return await race.run_first(partial(self._exchange.embed, call, node))
        finally:
            self._hedger.leave(race)

    async def _run(
        self,
        call: EmbedCall | TalkCall[Any],
        wishes: Wishes,
        send: Callable[[Node, float], Awaitable[_Answer]],
    ) -> _Answer:
        """Send to the best node, and as far as `core.retry` allows to others if it fails."""
        registry = self._registry
        now = registry.clock()
        deadline = now + wishes.timeout
        self._budget.request(now)
        request = call.request
        if wishes.sticky is not None or call.options is not None or self._reloaded:
            request = request._replace(home=self._home(call, wishes.sticky))
        attempts: list[NodeError] = []
        tried: set[str] = set()
        while True:
            try:
                node = await self._admission.place(
                    request, tried=tried, deadline=deadline, priority=wishes.priority
                )
            except RequestFailed as error:
                error.attempts = tuple(attempts)
                raise
            now = registry.clock()
            if registry.hub.is_watched:
                registry.tell(Routed(now, call.model, node.name, len(attempts) + 1, ""))
            self._notice_reload(call, node)
            try:
                answer = await send(node, deadline - now)
            except NodeError as error:
                if self._roster.is_closed:
                    raise PoolClosed("the pool was closed during this call") from error
                attempts.append(error)
                tried.add(node.name)
                wait = self._after(error, request, attempts, tried, deadline)
                if wait:
                    await anyio.sleep(wait)
                    tried.clear()
                    if self._roster.is_closed:
                        raise PoolClosed("the pool was closed during this call") from error
                continue
            if wishes.sticky is not None:
                self._settle(wishes.sticky, node)
            return answer

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
        nodes = {each.node: each.detail for each in attempts}
        raise NoNodeAvailable(
            f"every node that was asked failed: {decision.reason}", nodes, attempts
        ) from error

    # Where conversations and options are at home.

    def _home(self, call: EmbedCall | TalkCall[Any], sticky: str | None) -> str | None:
        if sticky is not None and sticky in self._homes:
            return self._homes[sticky]
        for node in self._roster.ready(call.model):
            # A server that has the model with these options need not load it anew.
            if not node.is_cold(call.model, call.options):
                return node.name
        return None

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
