"""What programs that share nodes tell one another: a `Report` out, an `Answer` back,
`LeaseCoordinator`.

Whoever carries these (a Ray actor, a pipe, a test) carries dictionaries of plain values, with a
number of the protocol in them: programs of two versions must find out that they are two.
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
"""Seconds for which a lease is good: after that, the slots of a program that died are free."""

DEFAULT_SLOTS = 4
"""Requests that a node is taken to handle at once where nobody says `max_concurrency`. What it
really computes at once (OLLAMA_NUM_PARALLEL, one for embeddings) it does not tell; it queues the
rest. More than that keep it busy while answers travel, and are enough for a few programs to have a
slot each all the time; many more would only wait in its queue, out of our hands."""

_LEAST_OBSERVATIONS = 3  # from which a learned cost is worth telling


class NodeUse(NamedTuple):
    """A member on one node. slots: requests that the node takes at once, as the member believes.

    using: requests under way there. wants: those that wait as well. is_down: as the member found.
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
        """Whether it can be believed, and is of enough answers."""
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
    """What a member tells. nodes: by `node_id`. costs: those that are new since its last report.

    group, weight, serial: see `core.leasing.book`.
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
        """Raises InvalidInput for what no member of this version tells."""
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
            raise InvalidInput(f"this is not a report: {error!r}") from error


@dataclass(frozen=True, slots=True)
class CoordinatorReply:
    """What a member is answered. slots: node -> requests it may have under way there.

    seconds: for which that holds, from when the member asked. serial: of this lease. is_new:
    whether the member was not known before, so that what it told before is not known either.
    down: nodes that others find down. costs: what others learned, and the member does not know.
    elsewhere: nodes that only others named. members: how many there are. groups: group -> its
    weight.
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
        """Raises InvalidInput for what no coordinator of this version answers."""
        try:
            if told["protocol"] != PROTOCOL:
                raise ValueError(f"protocol {told['protocol']}, not {PROTOCOL}")  # noqa: TRY301 (mapped like what else is wrong)
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
            raise InvalidInput(f"this is not an answer: {error!r}") from error


def node_id(spec: NodeSpec, machine: str) -> str:
    """What all programs call a node: ``host:port``, with the path and what is not http.

    A loopback address is another server on every machine, so that has the name of `machine`.
    """
    address = spec.address
    name = f"{address.netloc}{address.path}"
    if address.scheme != "http":
        name = f"{address.scheme}://{name}"
    return f"{machine}/{name}" if is_loopback(address.host) else name


def slots_of(spec: NodeSpec) -> int:
    """How many requests a node is taken to handle at once, as far as this program was told."""
    return spec.max_concurrency or DEFAULT_SLOTS


class _Learned:
    """A cost, who told it, and when it was told: the how manieth of all."""

    __slots__ = ("cost", "count", "member")

    def __init__(self, cost: KnownCost, member: str, count: int) -> None:
        self.cost = cost
        self.member = member
        self.count = count


class LeaseCoordinator:
    """What the members have in common: leases of slots, who finds what down, learned costs.

    Pure: `now` is an argument, in seconds of any clock that does not go back. Costs outlive those
    who told them, as long as somebody names the node.
    """

    def __init__(self, *, term: float = TERM, turn: float = 2.0) -> None:
        self._book = LeaseBook(term=term, turn=turn)
        self._term = term
        self._nodes: dict[str, dict[str, NodeUse]] = {}
        self._costs: dict[CostKey, _Learned] = {}
        self._count = 0
        self._told: dict[str, int] = {}
        self._parties: dict[str, tuple[str, float]] = {}

    def exchange(self, report: MemberReport, now: float) -> CoordinatorReply:
        """Take a member's report; its lease, and what others know. Raises InvalidInput."""
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
            self._term,
            lease.serial,
            is_new,
            frozenset(name for name in nodes if self._is_down(name, but=member)),
            news,
            tuple(sorted(self._all_nodes() - nodes.keys())),
            len(self._nodes),
            self._weights(),
        )

    def leave(self, member: str, now: float) -> None:
        """`member` is gone; its slots are free at once."""
        self._book.leave(member, now)
        self._forget([member, *self._book.expire(now)])

    def statistics(self, now: float) -> LeaseStatistics:
        """Who has what, of those who are still there."""
        self._forget(self._book.expire(now))
        return self._book.statistics()

    @property
    def members(self) -> Collection[str]:
        """Who is there, as of the last call."""
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
        """Whether somebody else finds it down, and no other finds it up."""
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
        """What others told since this member was last answered."""
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
