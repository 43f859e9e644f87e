"""Messages of programs that share nodes, and the `LeaseCoordinator` that answers them.

A `MemberReport` gets a `CoordinatorReply`. The transport (a Ray actor, a pipe, a test) carries
them as dictionaries of plain values with a protocol number, so that versions can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiosollol.core.leasing.book import LeaseBook, LeaseStatistics
from aiosollol.core.locality import is_loopback
from aiosollol.core.node import NodeSpec
from aiosollol.errors import InvalidInput

PROTOCOL = 1

TERM = 10.0
"""Seconds that a lease is valid: after that, the slots of a program that died are free."""

DEFAULT_SLOTS = 4
"""Slots of a node without `max_concurrency`. A node does not report how many requests it computes
at once (OLLAMA_NUM_PARALLEL; one for embeddings) and queues the rest. A few more keep it busy while
answers travel, and let a few programs have a slot each at all times; many more would only wait in
its queue, where they cannot be rerouted."""

_LEAST_OBSERVATIONS = 3  # needed to share a learned cost


class NodeUse(NamedTuple):
    """A member's use of one node.

    slots: requests that the node takes at once, as far as the member knows.
    wants: requests it could have in flight there, including those waiting.
    using: requests in flight there.
    is_down: whether the member finds the node down.
    """

    slots: int
    wants: int = 0
    using: int = 0
    is_down: bool = False


class KnownCost(NamedTuple):
    """A learned cost: see `core.scheduling.cost.Cost`."""

    overhead: float
    seconds_per_token: float
    observations: int
    reach: float

    @property
    def is_sound(self) -> bool:
        """Whether it is plausible and based on enough answers."""
        numbers = (self.overhead, self.seconds_per_token, self.reach)
        return (
            all(math.isfinite(number) and number >= 0.0 for number in numbers)
            and self.seconds_per_token > 0.0
            and self.observations >= _LEAST_OBSERVATIONS
        )


CostKey = tuple[str, str]
"""A node, and the full name of a model."""


@dataclass(frozen=True, slots=True)
class MemberReport:
    """A member's report.

    group, weight, serial: see `LeaseBook.ask`.
    nodes: its use of each node, by `node_id`.
    costs: learned costs that are new since its last report.
    """

    member: str
    group: str
    weight: float
    serial: int
    nodes: Mapping[str, NodeUse]
    costs: Mapping[CostKey, KnownCost] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "member": self.member,
            "group": self.group,
            "weight": self.weight,
            "serial": self.serial,
            "nodes": {name: tuple(use) for name, use in self.nodes.items()},
            "costs": [(*key, *cost) for key, cost in self.costs.items()],
        }

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> MemberReport:
        """The report in a dictionary. Raises InvalidInput if it is not one of this version."""
        try:
            return cls(
                told["member"],
                told["group"],
                told["weight"],
                told["serial"],
                {name: NodeUse(*use) for name, use in told["nodes"].items()},
                {(node, model): KnownCost(*cost) for node, model, *cost in told["costs"]},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"invalid member report: {error!r}") from error


@dataclass(frozen=True, slots=True)
class CoordinatorReply:
    """The coordinator's reply to a report.

    slots: requests that the member may have in flight, by node.
    seconds: term of the lease, from when the member sent its report.
    serial: of this lease.
    is_new: whether the member was unknown, so that its earlier reports are lost.
    down: nodes that other members find down.
    costs: costs learned by others that the member has not received yet.
    elsewhere: nodes that only other members named.
    members: number of members.
    groups: weights by group.
    """

    slots: Mapping[str, int]
    seconds: float
    serial: int
    is_new: bool = False
    down: frozenset[str] = frozenset()
    costs: Mapping[CostKey, KnownCost] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    members: int = 1
    groups: Mapping[str, float] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "slots": dict(self.slots),
            "seconds": self.seconds,
            "serial": self.serial,
            "is_new": self.is_new,
            "down": sorted(self.down),
            "costs": [(*key, *cost) for key, cost in self.costs.items()],
            "elsewhere": self.elsewhere,
            "members": self.members,
            "groups": dict(self.groups),
        }

    @classmethod
    def load(cls, told: Mapping[str, Any]) -> CoordinatorReply:
        """The reply in a dictionary. Raises InvalidInput if it is not one of this version."""
        try:
            if told["protocol"] != PROTOCOL:
                raise ValueError(f"protocol {told['protocol']}, not {PROTOCOL}")  # noqa: TRY301 (mapped below)
            return cls(
                dict(told["slots"]),
                float(told["seconds"]),
                told["serial"],
                told["is_new"],
                frozenset(told["down"]),
                {(node, model): KnownCost(*cost) for node, model, *cost in told["costs"]},
                tuple(told["elsewhere"]),
                told["members"],
                dict(told["groups"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"invalid coordinator reply: {error!r}") from error


def node_id(spec: NodeSpec, machine: str) -> str:
    """A node's name in all programs: ``host:port`` with its path, and its scheme unless http.

    A loopback address means a different server on every machine, so it is prefixed with `machine`.
    """
    address = spec.address
    name = f"{address.netloc}{address.path}"
    if address.scheme != "http":
        name = f"{address.scheme}://{name}"
    return f"{machine}/{name}" if is_loopback(address.host) else name


def slots_of(spec: NodeSpec) -> int:
    """The node's slots: its `max_concurrency`, else `DEFAULT_SLOTS`."""
    return spec.max_concurrency or DEFAULT_SLOTS


class _Learned:
    """A cost, the member that reported it, and its number in the order of arrival."""

    __slots__ = ("cost", "count", "member")

    def __init__(self, cost: KnownCost, member: str, count: int) -> None:
        self.cost = cost
        self.member = member
        self.count = count


class LeaseCoordinator:
    """The members' shared state: leases, nodes found down, learned costs.

    Pure: `now` is an argument, in seconds of any monotonic clock. Costs outlive the member that
    reported them, as long as another member names the node.
    """

    def __init__(self) -> None:
        self._book = LeaseBook(term=TERM)
        self._nodes: dict[str, dict[str, NodeUse]] = {}
        self._costs: dict[CostKey, _Learned] = {}
        self._count = 0
        self._told: dict[str, int] = {}
        self._parties: dict[str, tuple[str, float]] = {}

    def exchange(self, report: MemberReport, now: float) -> CoordinatorReply:
        """Record a member's report; its lease and the others' news. Raises InvalidInput."""
        self._forget(self._book.expire(now))
        member, nodes = report.member, report.nodes
        lease = self._book.ask(
            member,
            group=report.group,
            weight=report.weight,
            wants={name: use.wants for name, use in nodes.items()},
            using={name: use.using for name, use in nodes.items()},
            serial=report.serial,
            now=now,
            nodes={name: use.slots for name, use in nodes.items()},
        )
        is_new = member not in self._nodes
        self._nodes[member] = dict(nodes)
        self._parties[member] = (report.group or member, report.weight)
        self._learn(report)
        news = self._news(member, nodes)
        self._told[member] = self._count
        return CoordinatorReply(
            lease.slots,
            TERM,
            lease.serial,
            is_new,
            frozenset(name for name in nodes if self._is_down(name, but=member)),
            news,
            tuple(sorted(self._all_nodes() - nodes.keys())),
            len(self._nodes),
            self._weights(),
        )

    def leave(self, member: str, now: float) -> None:
        """Remove `member`; its slots are free at once."""
        self._book.leave(member, now)
        self._forget([member, *self._book.expire(now)])

    def statistics(self, now: float) -> LeaseStatistics:
        """The slots of all members whose lease has not ended."""
        self._forget(self._book.expire(now))
        return self._book.statistics()

    @property
    def members(self) -> Collection[str]:
        """The names of the members, as of the last call."""
        return self._nodes.keys()

    def _forget(self, members: Collection[str]) -> None:
        for member in members:
            self._nodes.pop(member, None)
            self._told.pop(member, None)
            self._parties.pop(member, None)
        if members:
            there = self._all_nodes()
            self._costs = {key: each for key, each in self._costs.items() if key[0] in there}

    def _all_nodes(self) -> set[str]:
        return {name for nodes in self._nodes.values() for name in nodes}

    def _is_down(self, name: str, *, but: str) -> bool:
        """Whether at least one other member finds it down, and none finds it up."""
        found = [
            nodes[name].is_down
            for member, nodes in self._nodes.items()
            if member != but and name in nodes
        ]
        return bool(found) and all(found)

    def _learn(self, report: MemberReport) -> None:
        for key, cost in report.costs.items():
            if cost.is_sound and key[0] in report.nodes:
                self._count += 1
                self._costs[key] = _Learned(cost, report.member, self._count)

    def _news(self, member: str, nodes: Mapping[str, NodeUse]) -> dict[CostKey, KnownCost]:
        """Costs that others reported since the last reply to this member."""
        since = self._told.get(member, 0)
        if since == self._count:
            return {}
        return {
            key: each.cost
            for key, each in self._costs.items()
            if each.count > since and each.member != member and key[0] in nodes
        }

    def _weights(self) -> dict[str, float]:
        weights: dict[str, float] = {}
        for group, weight in self._parties.values():
            weights[group] = max(weight, weights.get(group, 0.0))
        return weights
