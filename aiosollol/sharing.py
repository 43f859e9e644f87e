"""Sharing nodes with other programs: a background task renews leases from a coordinator.

No request waits for the coordinator. It decides how many requests this program may have under way
on each node (`Node.allow`), and that is renewed twice a second, sooner when a request waits for a
lease or other programs wait for what is to be given back. Without a coordinator the program goes on
by itself, and looks for it again.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup

from aiosollol.cluster.node import Node
from aiosollol.cluster.slots import NodeSlots
from aiosollol.cluster.state import ClusterState
from aiosollol.core.leasing.protocol import (
    CoordinatorReply,
    CostKey,
    KnownCost,
    MemberReport,
    NodeUse,
    node_id,
    slots_of,
)
from aiosollol.core.scheduling.cost import Cost
from aiosollol.errors import EngineError
from aiosollol.ports import Coordinator

log = logging.getLogger("aiosollol")

INTERVAL = 0.5
"""Seconds between two renewals of leases, by whatever way."""
URGENT_INTERVAL = 0.1
"""The same, while a request waits for a place that only a lease keeps from it."""
RETRY_INTERVAL, MOST_RETRY_INTERVAL = 3.0, 30.0
"""The same, without a coordinator: exponential, because an attempt may start a process."""
ANSWER_SECONDS = 6.0
"""Timeout of a report, on any transport."""
LEAVE_SECONDS = 1.0


class Renewal:
    """Renews leases again and again: after an interval, or sooner."""

    def __init__(self) -> None:
        self._wake = anyio.Event()
        self._renewed_at = 0.0
        self._pause: anyio.CancelScope | None = None

    async def run(self, renew: Callable[[], Awaitable[float]]) -> None:
        """Until cancelled. renew: returns the seconds until the next time."""
        while True:
            self._wake = anyio.Event()
            seconds = await renew()
            self._renewed_at = anyio.current_time()
            with anyio.move_on_after(seconds) as self._pause:
                await self._wake.wait()

    def wake(self) -> None:
        """Renew now, or once more if that is under way."""
        self._wake.set()

    def hurry(self, seconds: float) -> None:
        """Renew at the latest `seconds` after the last time."""
        if self._pause is not None:
            self._pause.deadline = min(self._pause.deadline, self._renewed_at + seconds)


class LeaseClient:
    """Maintains the leases of one program. Await `run` in a task; cancel it to leave.

    probe: probes a node, by name; never raises.
    member: unique name of the program.
    group, weight: see `core.leasing.book`.
    machine: name of this machine, see `core.leasing.protocol.node_id`.
    """

    def __init__(
        self,
        registry: ClusterState,
        coordinator: Coordinator,
        probe: Callable[[str], Coroutine[Any, Any, None]],
        *,
        member: str,
        group: str,
        weight: float,
        machine: str,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._coordinator = coordinator
        self._probe = probe
        self._member = member
        self._group = group
        self._weight = weight
        self._machine = machine
        self._rng = rng or random.Random()
        self._serial = 0
        self._ends_at: float | None = None
        self._answer: CoordinatorReply | None = None
        self._is_renewed = anyio.Event()
        self._told: dict[CostKey, int] = {}
        self._hearsay: dict[CostKey, Cost] = {}
        self._suspects: set[str] = set()
        self._renewal = Renewal()
        self._excess: anyio.CancelScope | None = None
        self._lowered = False
        self._complaint: str | None = None
        self._tries = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a valid lease."""
        return self._ends_at is not None

    def stats(self) -> dict[str, Any]:
        """The part of `get_stats` on sharing: connection, members, and leases by node."""
        answer = self._answer if self.is_connected else None
        names = self._names()
        return {
            "connected": answer is not None,
            "member": self._member,
            "group": self._group or self._member,
            "weight": self._weight,
            "members": answer.members if answer else 0,
            "groups": dict(answer.groups) if answer else {},
            "leases": {
                names[known].name: slots
                for known, slots in (answer.slots if answer else {}).items()
                if known in names
            },
            "nodes_elsewhere": list(answer.elsewhere) if answer else [],
        }

    async def run(self) -> None:
        """Renew the leases until cancelled. Then return them and remove all limits."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_end)
                await self._renewal.run(partial(self._renew, group))
        finally:
            self._release()
            with anyio.move_on_after(LEAVE_SECONDS, shield=True):
                await self._coordinator.leave(self._member)

    async def _renew(self, group: TaskGroup) -> float:
        await self._ask(group)
        if self._excess is not None:
            self._excess.cancel()
        excess = [node for node in self._registry if node.taken > node.share]
        if excess:
            group.start_soon(self._watch_excess, excess)
        return self._next_interval()

    # One question.

    async def _ask(self, group: TaskGroup) -> None:
        try:
            await self._coordinator.start()
        except EngineError as error:
            self._lost(error)
            return
        names = self._names()
        asked_at = self._registry.clock()
        costs = self._own_costs(names)
        report = MemberReport(
            self._member,
            self._group,
            self._weight,
            self._serial,
            {known: self._use(node) for known, node in names.items()},
            costs,
        )
        try:
            with anyio.fail_after(ANSWER_SECONDS):
                answer = await self._coordinator.exchange(report)
        except (EngineError, TimeoutError) as error:
            self._lost(error)
            return
        self._told.update({key: cost.observations for key, cost in costs.items()})
        self._take(answer, asked_at, names, group)

    def _names(self) -> dict[str, Node]:
        return {node_id(node.spec, self._machine): node for node in self._registry}

    @staticmethod
    def _use(node: Node) -> NodeUse:
        using = node.taken
        # A node that is down here may be up for others: requests waiting for it do not count.
        wants = using if node.is_down or node.is_draining else _wants(node)
        return NodeUse(slots_of(node.spec), wants, using, node.is_down)

    def _own_costs(self, names: dict[str, Node]) -> dict[CostKey, KnownCost]:
        """Costs learned here, not from others, since they were last reported."""
        costs = {}
        for known, node in names.items():
            for model, cost in node.costs.items():
                key = (known, model)
                if cost is self._hearsay.get(key) or cost.observations == self._told.get(key):
                    continue
                figures = KnownCost(
                    cost.overhead, cost.seconds_per_token, cost.observations, cost.reach
                )
                if figures.is_sound:
                    costs[key] = figures
        return costs

    # Replies.

    def _take(
        self, answer: CoordinatorReply, asked_at: float, names: dict[str, Node], group: TaskGroup
    ) -> None:
        # Counted from the send, so that the lease ends here first, however long the reply took.
        ends_at = asked_at + answer.seconds
        if ends_at <= self._registry.clock():
            self._lost(TimeoutError())
            return
        if answer.is_new and self._told:
            self._told.clear()  # the coordinator lost the earlier reports
        self._lowered = False
        for known, slots in answer.slots.items():
            node = names.get(known)
            if node is None or node.name not in self._registry:
                continue
            self._lowered |= self._answer is not None and slots < self._answer.slots.get(known, 0)
            node.allow(slots, self._press)
        self._serial, self._answer = answer.serial, answer
        if self._complaint is not None and not self.is_connected:
            log.info("%s is back: %d programs share the nodes", self._name, answer.members)
        self._complaint, self._tries = None, 0
        self._ends_at = ends_at
        self._is_renewed.set()
        self._is_renewed = anyio.Event()
        self._adopt(answer, names)
        self._look_at_suspects(answer.down, names, group)

    def _adopt(self, answer: CoordinatorReply, names: dict[str, Node]) -> None:
        """Adopt others' costs for unmeasured nodes, until this program's first own answer."""
        for (known, model), told in answer.costs.items():
            node = names.get(known)
            if node is not None and told.is_sound:
                cost = Cost(told.overhead, told.seconds_per_token, 1, told.reach)
                if node.adopt_cost(model, cost):
                    self._hearsay[known, model] = cost

    def _look_at_suspects(
        self, down: frozenset[str], names: dict[str, Node], group: TaskGroup
    ) -> None:
        """Probe nodes newly reported down by others: they may be up for this program."""
        for known in down - self._suspects:
            node = names.get(known)
            if node is not None and not node.is_down and node.name in self._registry:
                group.start_soon(self._probe, node.name)
        self._suspects = set(down)

    # Without a coordinator.

    @property
    def _name(self) -> str:
        return self._coordinator.name

    def _lost(self, error: Exception) -> None:
        """Handle a missing reply. A lease stays valid until it ends; without one, warn once."""
        why = str(error) or f"{self._name} did not answer in time"
        if self.is_connected:
            log.debug("%s; the lease is still valid", why)
            self._complaint = why
        elif self._complaint is None:
            self._complaint = why
            self._complain(why)

    def _complain(self, why: str) -> None:
        log.warning("%s; until it is back, nodes are used without regard to other programs", why)

    async def _watch_end(self) -> None:
        """End the lease in time, regardless of the coordinator."""
        while True:
            renewed = self._is_renewed
            left = math.inf if self._ends_at is None else self._ends_at - self._registry.clock()
            with anyio.move_on_after(left):
                await renewed.wait()
                continue
            self._release()
            self._complain(self._complaint or f"{self._name} did not renew the lease in time")
            self._complaint = self._complaint or "lost"

    def _release(self) -> None:
        self._ends_at = self._answer = None
        for node in self._registry:
            node.allow(None)

    # Timing of reports.

    def _next_interval(self) -> float:
        jitter = self._rng.uniform(0.9, 1.1)  # many programs ask, and not all at the same moment
        if self._complaint is not None:
            interval = min(RETRY_INTERVAL * 2.0**self._tries, MOST_RETRY_INTERVAL)
            self._tries += not self.is_connected
            return interval * jitter
        if self._lowered:
            return 0.0  # others wait for what we were to give back
        if any(map(_is_starved, self._registry)):
            return URGENT_INTERVAL
        return INTERVAL * jitter

    def _press(self, node: NodeSlots) -> None:
        """A request waits, or what our workers use has changed."""
        if self._complaint is None and _is_starved(node):
            self._renewal.hurry(URGENT_INTERVAL)

    async def _watch_excess(self, nodes: Sequence[Node]) -> None:
        """Ask at once when no more is under way than the lease allows: others wait for it."""
        with anyio.CancelScope() as self._excess:
            for node in nodes:
                while node.taken > node.share:
                    await node.wait_left()
            if self._complaint is None:
                self._renewal.hurry(0.0)


def _is_starved(node: NodeSlots) -> bool:
    """Whether a request waits for a place, and it is the lease that keeps it waiting."""
    return node.taken >= node.share < _wants(node)


def _wants(node: NodeSlots) -> int:
    return node.wanted + node.far_wants
