"""Finds the node for a live request, and a place on it."""

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
_LOOK_SECONDS = 0.05  # how exactly the end of somebody's patience is noticed
_PATIENCE = 2.0
"""Times what it should take that a request waits in one line before it looks around again."""


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
        """The node for `request`, with a place on it that is taken already (`Node.leave`).

        tried: nodes to leave out while there are others. deadline: by the cluster's clock.
        is_patient: wait in line for `wait_timeout`, past the deadline.
        Raises PoolSaturated, PoolClosed, ModelNotFound, NoNodeAvailable.
        """
        if request.kind == "embed" and self._eligibility.is_undecided(request.model):
            # Of which digest its vectors are to be is decided once: by all nodes, if they answer.
            await self._wait_ready(request.model, deadline, patient=True)
        nodes = self.eligible(request, tried)
        node = None
        if nodes:
            node = self._on_trial(nodes, request)
            if node is None:
                node = nodes[0] if len(nodes) == 1 else self._choose(nodes, request)
            if node.try_enter():
                return node
        return await self._wait(request, tried, deadline, priority, is_patient, node)

    def try_place(self, request: RouteRequest, tried: Collection[str]) -> Node | None:
        """A sound node but those `tried`, and a place on it that is taken now; None if none has."""
        nodes = [
            node
            for node in self.eligible(request, tried)
            if node.name not in tried
            and node.in_flight < node.limit
            and node.breaker.opens_at is None
        ]
        if not nodes:
            return None
        node = self._choose(nodes, request)
        return node if node.try_enter() else None

    def eligible(self, request: RouteRequest, tried: Collection[str] = ()) -> Sequence[Node]:
        """The nodes that may have `request` now, perhaps none."""
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
        # Better to ask one that failed than nobody.
        node = last_resort(((node, node.breaker) for node in nodes), now)
        return [] if node is None else [node]

    def _on_trial(self, nodes: Sequence[Node], request: RouteRequest) -> Node | None:
        """A node with a place that is due to be probed, or looked at: whatever its prospects, the
        next request that can be sent elsewhere as well is for that. Nothing else shows that it is
        well again."""
        cluster = self._cluster
        if not (cluster.not_closed or cluster.stained) or not request.can_move:
            return None
        now = cluster.clock()
        for node in nodes:
            is_due = node.breaker.opens_at is not None or node.standing.is_due(now)
            if is_due and node.in_flight < node.limit:
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
        """Wait in the line of the node that was chosen; look around again when that takes long."""
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
                else:  # all are being probed after failures: in a moment it is known how they are
                    with anyio.move_on_after(min(gives_up - now, 1.0)):
                        await cluster.wait_changed(version)
                continue
            if node is None:
                node = nodes[0] if len(nodes) == 1 else self._choose(nodes, request)
                if node.try_enter():
                    return node
            if now >= gives_up:
                raise saturated(now - came)
            patience = max(_LEAST_PATIENCE, _PATIENCE * node.ahead(now))
            if await self._in_line(node, came, priority, now + patience, gives_up):
                if self._eligibility.is_closed:  # between the place and our turn
                    node.leave()
                    raise PoolClosed("the pool was closed during this call")
                if cluster.clock() >= gives_up:  # a place came, but too late to be of use
                    node.leave()
                    raise saturated(cluster.clock() - came)
                return node
            if is_patient:
                deadline += cluster.clock() - now

    async def _wait_ready(self, model: str, deadline: float, *, patient: bool = False) -> None:
        with anyio.move_on_after(deadline - self._cluster.clock()) as limit:
            await self._eligibility.wait_ready(model, patient=patient)
        if limit.cancelled_caught:
            raise NoNodeAvailable(
                f"no node was there for {model!r} within the time that the call was given",
                self._eligibility.conditions(),
            )

    async def _in_line(
        self, node: Node, came: float, priority: int, until: float, gives_up: float
    ) -> bool:
        """Whether a place on `node` came free for us, before it was time to look elsewhere."""
        waiter = Waiter(self._cluster.new_gate(), until, gives_up)
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
                node.leave()
            raise
        node.step_out(ticket)
        return waiter.has_place

    def _watch_lines(self) -> None:
        """See to it that nobody waits longer than he wants: one task for all, and no timer each."""
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
