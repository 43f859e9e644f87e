"""Finds the node for a live request, and takes a slot on it."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import anyio

from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.node import Node
from aiosollol.cluster.slots import Waiter
from aiosollol.cluster.state import ClusterState
from aiosollol.core.routing.circuit_breaker import last_resort
from aiosollol.core.routing.strategies import RouteRequest, RoutingFunction, route
from aiosollol.core.routing.wait_queue import USUAL, saturated
from aiosollol.errors import NoNodeAvailable, PoolClosed, PoolSaturated
from aiosollol.live.model_loader import Spawn

_LEAST_PATIENCE = 0.1
_LOOK_SECONDS = 0.05  # how often waiting requests are checked for having waited long enough
_PATIENCE = 2.0
"""Times the predicted wait in a line, after which a request chooses a node again."""


class Admission:
    """Gives live requests their slots.

    eligibility: says which nodes are fit for a model.
    strategy: chooses one of several nodes.
    wait_timeout: seconds that a request waits for a slot, at most.
    spawn: runs a task of the pool.
    """

    def __init__(
        self,
        cluster: ClusterState,
        eligibility: Eligibility,
        strategy: RoutingFunction,
        wait_timeout: float,
        rng: random.Random,
        spawn: Spawn,
    ) -> None:
        self._cluster = cluster
        self._eligibility = eligibility
        self._strategy = strategy
        self._wait_timeout = wait_timeout
        self._rng = rng
        self._spawn = spawn
        self._is_watching = False

    async def place(
        self,
        request: RouteRequest,
        *,
        tried: Collection[str] = (),
        deadline: float,
        priority: int = USUAL,
        is_patient: bool = False,
    ) -> Node:
        """The node for `request`, with a slot taken on it. Pair with `Node.leave`.

        tried: names of nodes to leave out while there are others.
        deadline: by the cluster's clock.
        priority: see `core.routing.wait_queue`.
        is_patient: wait in line for `wait_timeout`, past the deadline.
        Raises PoolSaturated, PoolClosed, ModelNotFound, NoNodeAvailable.
        """
        if request.kind == "embed" and self._eligibility.is_undecided(request.model):
            # Pin the model digest on first use: wait for the answers of all nodes.
            await self._wait_ready(request.model, deadline, patient=True)
        nodes = self.eligible(request, tried)
        node = None
        if nodes:
            node = self._on_trial(nodes, request)
            if node is None:
                node = nodes[0] if len(nodes) == 1 else self._choose(nodes, request)
            if node.try_enter(node.workload(request)):
                return node
        return await self._wait(request, tried, deadline, priority, is_patient, node)

    def try_place(self, request: RouteRequest, tried: Collection[str]) -> Node | None:
        """A node with a closed breaker and not in `tried`, and a slot taken on it; None if none."""
        nodes = [
            node
            for node in self.eligible(request, tried)
            if node.name not in tried and node.has_slot(request) and node.breaker.opens_at is None
        ]
        if not nodes:
            return None
        node = self._choose(nodes, request)
        return node if node.try_enter(node.workload(request)) else None

    def eligible(self, request: RouteRequest, tried: Collection[str] = ()) -> Sequence[Node]:
        """The nodes that may get `request` now, perhaps none."""
        nodes: Sequence[Node]
        if request.kind == "embed":
            nodes = self._eligibility.comparable(request.model)
        else:
            nodes = self._eligibility.ready(request.model)
        if tried:
            nodes = [node for node in nodes if node.name not in tried] or nodes
        if not self._cluster.not_closed:
            return nodes
        now = self._cluster.clock()
        admitting = [node for node in nodes if node.breaker.admits(now)]
        if not request.can_move:
            sound = [node for node in admitting if node.breaker.opens_at is None]
            admitting = sound or admitting
        if admitting or not nodes:
            return admitting
        # Asking a node that failed is better than asking none.
        node = last_resort(((node, node.breaker) for node in nodes), now)
        return [] if node is None else [node]

    def _on_trial(self, nodes: Sequence[Node], request: RouteRequest) -> Node | None:
        """A node with a free slot that is due for a probe or a check; None if there is none.

        The next request that can move to another node goes there, whatever the strategy says:
        nothing else shows that the node has recovered.
        """
        cluster = self._cluster
        if not (cluster.not_closed or cluster.stained) or not request.can_move:
            return None
        now = cluster.clock()
        for node in nodes:
            is_due = node.breaker.opens_at is not None or node.standing.is_due(now)
            if is_due and node.has_slot(request):
                return node
        return None

    def _choose(self, nodes: Sequence[Node], request: RouteRequest) -> Node:
        return route(self._strategy, nodes, request, self._cluster.clock(), self._rng)

    async def _wait(
        self,
        request: RouteRequest,
        tried: Collection[str],
        deadline: float,
        priority: int,
        is_patient: bool,
        chosen: Node | None,
    ) -> Node:
        """Wait in the line of the chosen node; choose again if that takes long."""
        cluster = self._cluster
        came = cluster.clock()
        gives_up = came + self._wait_timeout
        if not is_patient:
            gives_up = min(gives_up, deadline)
        while True:
            if self._eligibility.is_closed:
                raise PoolClosed("the pool was closed during this call")
            version = cluster.version
            node, chosen = chosen, None
            nodes = self.eligible(request, tried) if node is None else [node]
            now = cluster.clock()
            if not nodes:
                if not self._eligibility.ready(request.model):
                    await self._wait_ready(request.model, deadline)
                elif now >= gives_up:
                    raise saturated(now - came)
                else:  # all are being probed after failures, and will be known soon
                    with anyio.move_on_after(min(gives_up - now, 1.0)):
                        await cluster.wait_changed(version)
                continue
            if node is None:
                node = nodes[0] if len(nodes) == 1 else self._choose(nodes, request)
                if node.try_enter(node.workload(request)):
                    return node
            if now >= gives_up:
                raise saturated(now - came)
            patience = max(_LEAST_PATIENCE, _PATIENCE * node.ahead(now))
            work = node.workload(request)
            work.traffic.note(now)
            waiter = Waiter(
                cluster.new_gate(), work, node.seconds(request) or 0.0, now + patience, gives_up
            )
            if await self._in_line(node, waiter, came, priority):
                if self._eligibility.is_closed:  # after we got the slot, and before we ran
                    node.leave(work)
                    raise PoolClosed("the pool was closed during this call")
                if cluster.clock() >= gives_up:  # the slot came too late
                    node.leave(work)
                    raise saturated(cluster.clock() - came)
                return node
            if is_patient:
                deadline += cluster.clock() - now

    async def _wait_ready(self, model: str, deadline: float, *, patient: bool = False) -> None:
        with anyio.move_on_after(deadline - self._cluster.clock()) as limit:
            await self._eligibility.wait_ready(model, patient=patient)
        if limit.cancelled_caught:
            raise NoNodeAvailable(
                f"no node was available for {model!r} within the timeout of the call",
                self._eligibility.conditions(),
            )

    async def _in_line(self, node: Node, waiter: Waiter, came: float, priority: int) -> bool:
        """Whether we got a slot on `node` before it was time to choose again."""
        ticket = node.line_up(waiter, came, priority)
        if ticket is None:
            raise PoolSaturated(
                f"{len(self._cluster.room)} requests are waiting for a node already; "
                "send fewer at once, add nodes, or raise max_waiting"
            )
        try:
            self._watch_lines()
            await waiter.arrived.wait()
        except BaseException:
            node.step_out(ticket)
            if waiter.has_place:
                node.leave(waiter.work)
            raise
        node.step_out(ticket)
        return waiter.has_place

    def _watch_lines(self) -> None:
        """End waits that are over, by one task for all requests instead of a timer for each."""
        if not self._is_watching:
            self._is_watching = True
            self._spawn(self._watch(), "watch the lines")

    async def _watch(self) -> None:
        try:
            while len(self._cluster.room):
                await anyio.sleep(_LOOK_SECONDS)
                now = self._cluster.clock()
                for node in list(self._cluster):
                    if node.queued:
                        node.send_late_away(now)
        finally:
            self._is_watching = False
