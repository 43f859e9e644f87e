"""Leases of node slots, so that several programs on the same nodes stay within their limits.

A node takes a limited number of requests at once: its slots. One coordinator keeps a `LeaseBook`.
Each member asks it regularly, reporting what it wants and uses, and gets a `Lease`: how many
requests it may have in flight on each node until it asks again. `core.leasing.demand` computes the
targets; the book grants the slots, each only once:

- A slot is taken while any lease that the member may still be using allows it, or a request
  occupies it. The member reports the serial of the last lease it has applied, which confirms it. A
  lower lease is only a request until it is confirmed.
- Additional slots are granted from free ones only. A member below its target waits until others
  confirm lower leases.
- A member that does not ask within the term is removed. Its lease has ended by then.

A member must follow these rules:

- Count the term of a lease from when the request was sent, so that its own end comes first, however
  long the reply took. After that end, start no requests until there is another lease.
- Ignore a reply with a lower serial than one already received.
- Use at most the leased slots. With more requests in flight than a new lease allows, let them
  finish and start none.
- Ask again at once when a lease has taken slots away, and when the excess requests have ended:
  others wait for that. A restarted member, with nothing in flight, asks with serial 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aiosollol.core.leasing.demand import SlotDemand
from aiosollol.core.leasing.fair_share import Party, SlotShares
from aiosollol.errors import InvalidInput

_MOST_LEASES = 32
"""Unconfirmed leases kept for a member. Beyond that, the oldest are merged into one."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The slots a member may use until it asks again.

    slots: maximum number of requests in flight by node, for every node visible to the member,
    including those with 0.
    until: when it ends unless renewed, in seconds on the book's clock.
    serial: increases with every reply to this member.
    """

    slots: Mapping[str, int]
    until: float
    serial: int


@dataclass(frozen=True, slots=True)
class MemberSlots:
    """One member on one node, in slots: `held` now, its `target`, and the number it `wants`."""

    held: int
    target: int
    wants: int


@dataclass(frozen=True, slots=True)
class NodeLeases:
    """One node. `free` is negative if more requests are in flight than its capacity allows."""

    capacity: int
    free: int
    members: Mapping[str, MemberSlots]


@dataclass(frozen=True, slots=True)
class GroupLeases:
    """One group. A member without a group counts as one with the member's name.

    fair: slots that its weight and wants entitle it to, over all nodes, in fractions.
    held: slots it holds, over all nodes.
    credit: slot-seconds owed to it; negative if it owes them.
    """

    name: str
    members: tuple[str, ...]
    weight: float
    fair: float
    held: int
    credit: float


@dataclass(frozen=True, slots=True)
class LeaseStatistics:
    """A snapshot of a lease book."""

    nodes: Mapping[str, NodeLeases]
    groups: tuple[GroupLeases, ...]


class _Member:
    """The book's record of a member. leases: those it may still be using, by serial."""

    __slots__ = ("knows", "leases", "party", "serial", "until", "using", "wants")

    def __init__(self, party: Party) -> None:
        self.party = party
        self.knows: dict[str, int] | None = None
        self.leases: dict[int, dict[str, int]] = {}
        self.serial = 0
        self.until = -math.inf
        self.using: dict[str, int] = {}
        self.wants: dict[str, int] = {}

    def confirm(self, serial: int, using: Mapping[str, int]) -> None:
        """Record that the member uses the lease `serial`, or a later one."""
        if serial in self.leases:
            self.leases = {each: slots for each, slots in self.leases.items() if each >= serial}
            self.using = dict(using)
        else:  # a delayed request, or a lease from another book: no proof of what is in use
            for node, count in using.items():
                self.using[node] = max(count, self.using.get(node, 0))
        self.serial = max(self.serial, serial)

    def add(self, serial: int, slots: dict[str, int]) -> None:
        self.serial = serial
        self.leases[serial] = slots
        if len(self.leases) > _MOST_LEASES:
            first, second = sorted(self.leases)[:2]
            old, kept = self.leases.pop(first), self.leases[second]
            self.leases[second] = {
                node: max(old.get(node, 0), kept.get(node, 0)) for node in {**old, **kept}
            }

    def can_use(self, node: str) -> bool:
        return self.knows is None or node in self.knows

    def leased(self, node: str) -> int:
        """The most slots on a node that any lease it may still be using allows."""
        most = 0
        for slots in self.leases.values():
            most = max(most, slots.get(node, 0))
        return most

    def holds(self, node: str) -> int:
        """The most requests it may have in flight on a node before it asks again."""
        return max(self.using.get(node, 0), self.leased(node))


class _Node:
    """A node in the book. held: member -> slots, without zeros; taken: their sum."""

    __slots__ = ("division", "held", "ranks", "taken")

    def __init__(self, division: SlotShares) -> None:
        self.division = division
        self.held: dict[str, int] = {}
        self.taken = 0
        self.ranks: dict[str, int] | None = None  # order of members that know it; None if stale

    def hold(self, member: str, slots: int) -> None:
        self.taken += slots - self.held.pop(member, 0)
        if slots:
            self.held[member] = slots


class LeaseBook:
    """Divides the slots of nodes among members, fairly by weight, and grants none twice.

    term: seconds that a lease is valid.
    turn: seconds between two moves of a node's slots for fairness that whole slots cannot express
    at once.
    Every call takes `now`, in seconds of a monotonic clock. Raises InvalidInput for invalid values.

    Members of a group share its weight. Fairness is over all nodes together, in slot-seconds: a
    member that can use only one node has precedence there over members that can use others.
    Unwanted slots are granted in advance, evenly, and called back when wanted. A group that keeps a
    slot longer than its share waits afterwards; at most ten turns of one slot are counted.
    """

    def __init__(self, *, term: float = 10.0, turn: float = 2.0) -> None:
        self._term = _positive(term, "the term of a lease")
        self._turn = _positive(turn, "a turn")
        self._claims = SlotDemand(self._turn)
        self._members: dict[str, _Member] = {}
        self._nodes: dict[str, _Node] = {}
        self._given: dict[str, int] = {}
        self._expired: list[str] = []
        self._now = -math.inf

    def set_nodes(self, slots: Mapping[str, int], now: float) -> None:
        """Set the nodes and their slots. Nodes that are not named are removed.

        Members may name others when they ask.
        """
        self._given = _counts(slots, "the slots of nodes")
        self._pass_time(now)
        self._see_nodes()
        self._claims.settle(self._now)

    def ask(
        self,
        member: str,
        *,
        group: str = "",
        weight: float = 1.0,
        wants: Mapping[str, int],
        using: Mapping[str, int],
        serial: int,
        now: float,
        nodes: Mapping[str, int] | None = None,
    ) -> Lease:
        """A new lease for `member`, replacing its current one. Raises InvalidInput.

        group: members of a group share one weight, the highest that any of them gives; "" for none.
        wants: requests it could have in flight now on each node, including `using`.
        using: requests in flight on each node.
        serial: of the last lease it has applied; 0 for none.
        nodes: the nodes it knows, with the slots it believes they have. It then gets slots of these
        only, and the lowest number that any member gives counts.
        """
        _name(member, "a member")
        weight = _positive(weight, "a weight")
        wants, using = _counts(wants, "wants"), _counts(using, "using")
        knows = None if nodes is None else _counts(nodes, "the slots of nodes")
        if type(serial) is not int or serial < 0:
            raise InvalidInput(f"a serial must be a whole number of at least 0, not {serial!r}")
        if not isinstance(group, str):
            raise InvalidInput(f"a group must be a string, not {group!r}")
        self._pass_time(now)
        known = self._members.get(member)
        if known is None:
            known = self._members[member] = _Member(self._claims.join(member, group, weight))
            self._forget_ranks()
        elif known.party.group.key[0] != group:
            self._claims.remove(known.party)
            known.party = self._claims.join(member, group, weight)
        else:
            self._claims.set_weight(known.party, weight)
        known.until = self._now + self._term
        known.confirm(serial, using)
        known.wants = {name: max(count, using.get(name, 0)) for name, count in wants.items()}
        for name, count in using.items():
            known.wants.setdefault(name, count)
        if knows != known.knows:
            known.knows = knows
            self._see_nodes()
            self._forget_ranks()
        self._see(member, known)
        self._claims.settle(self._now)
        return self._lease(member, known)

    def leave(self, member: str, now: float) -> None:
        """Remove `member`, which uses no slots any more. Does nothing if it is unknown."""
        self._pass_time(now)
        if member in self._members:
            self._forget(member)
            self._claims.settle(self._now)

    def expire(self, now: float) -> list[str]:
        """The members whose lease has ended since the last call. Their slots are free."""
        self._pass_time(now)
        self._claims.settle(self._now)
        expired, self._expired = self._expired, []
        return expired

    def statistics(self) -> LeaseStatistics:
        """The slots that every member has and wants, as of the last call."""
        nodes = {}
        for name, node in sorted(self._nodes.items()):
            shares = {}
            for member, known in sorted(self._members.items()):
                held, wants = node.held.get(member, 0), known.wants.get(name, 0)
                target = node.division.targets.get(known.party, 0)
                if held or wants or target:
                    shares[member] = MemberSlots(held=held, target=target, wants=wants)
            capacity = node.division.capacity
            nodes[name] = NodeLeases(capacity, capacity - node.taken, shares)
        groups = tuple(
            GroupLeases(
                name=group.key[0] or group.key[1],
                members=tuple(sorted(group.parties)),
                weight=group.weight,
                fair=group.fair,
                held=sum(self._held(each) for each in group.parties),
                credit=group.credit,
            )
            for _, group in sorted(self._claims.groups.items())
        )
        return LeaseStatistics(nodes, groups)

    def _held(self, member: str) -> int:
        return sum(node.held.get(member, 0) for node in self._nodes.values())

    def _pass_time(self, now: float) -> None:
        if not isinstance(now, int | float) or not math.isfinite(now):
            raise InvalidInput(f"now must be a number of seconds, not {now!r}")
        self._now = max(self._now, float(now))
        self._claims.pass_time(self._now)
        for member in sorted(n for n, known in self._members.items() if known.until <= self._now):
            self._forget(member)
            self._expired.append(member)

    def _forget(self, member: str) -> None:
        known = self._members.pop(member)
        self._claims.remove(known.party)
        for node in self._nodes.values():
            node.hold(member, 0)
        self._forget_ranks()
        if known.knows is not None:
            self._see_nodes()

    def _see_nodes(self) -> None:
        """Update the nodes, each with the lowest number of slots that any member gave."""
        least = dict(self._given)
        for known in self._members.values():
            for name, slots in (known.knows or {}).items():
                least[name] = min(slots, least.get(name, slots))
        if least == {name: node.division.capacity for name, node in self._nodes.items()}:
            return
        for name in [each for each in self._nodes if each not in least]:
            self._claims.remove_node(name)
            del self._nodes[name]
        for name, slots in least.items():
            division = self._claims.set_capacity(name, slots, self._now)
            if name not in self._nodes:
                self._nodes[name] = _Node(division)
        for member, known in self._members.items():
            self._see(member, known)

    def _see(self, member: str, known: _Member) -> None:
        """Record what a member wants and holds."""
        charged, claims = 0, self._claims
        for name, node in self._nodes.items():
            can_use = known.can_use(name)
            held, wants = known.holds(name), known.wants.get(name, 0) if can_use else 0
            if held != node.held.get(member, 0):
                node.hold(member, held)
            claims.want(known.party, name, wants)
            charged += min(held, wants)
        claims.charge(known.party, charged)

    def _lease(self, member: str, known: _Member) -> Lease:
        slots, charged = {}, 0
        for place, (name, node) in enumerate(self._nodes.items()):
            held = node.held.get(member, 0)
            if known.can_use(name):
                ought = node.division.targets.get(known.party, 0)
                ought += self._advance(member, name, node, place)
                if ought:
                    # Slots it uses beyond its lease count as held, but are not granted.
                    free = node.division.capacity - (node.taken - held)
                    ought = min(ought, max(free, known.leased(name)))
                slots[name] = ought
                if ought > held:
                    node.hold(member, ought)
                    held = ought
            charged += min(held, known.wants.get(name, 0))
        self._claims.charge(known.party, charged)
        known.add(known.serial + 1, slots)
        return Lease(slots=dict(slots), until=known.until, serial=known.serial)

    def _advance(self, member: str, name: str, node: _Node, place: int) -> int:
        """The member's part of the unwanted slots of a node.

        place: index of the node, which rotates the members that get the remainder.
        """
        spare = node.division.spare
        if not spare:
            return 0
        if node.ranks is None:
            those = [one for one, known in self._members.items() if known.can_use(name)]
            node.ranks = {each: rank for rank, each in enumerate(sorted(those))}
        members = len(node.ranks)
        each, rest = divmod(spare, members)
        return each + ((node.ranks[member] - place * rest) % members < rest)

    def _forget_ranks(self) -> None:
        for node in self._nodes.values():
            node.ranks = None


def _name(name: object, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"the name of {what} must be a string that is not empty, not {name!r}")


def _positive(value: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise InvalidInput(f"{what} must be a number above 0, not {value!r}")
    return float(value)


def _counts(counts: Mapping[str, int], what: str) -> dict[str, int]:
    """A copy of `counts`. Raises InvalidInput unless it maps names to whole numbers from 0."""
    for name, count in counts.items():
        _name(name, "a node")
        if type(count) is not int or count < 0:
            raise InvalidInput(
                f"{what} must be whole numbers of at least 0, not {count!r} for {name}"
            )
    return dict(counts)
