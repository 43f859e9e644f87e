"""Slots of nodes, leased to members: several programs on the same nodes, none above its limit.

A node takes a limited number of requests at once: its slots. One coordinator keeps a `LeaseBook`,
and each member asks it again and again, telling what it wants and what it is using. The answer is a
`Lease`: how many requests the member may have under way on each node until it asks again.
`core.leasing.demand` decides who ought to have how many; the book hands them out, and no slot
twice:

- A slot is taken while any lease that the member may still go by allows it, or a request is under
  way in it. Which leases those are, the member says with the serial of the last one that it has
  applied. A lower lease is a request, which costs nothing until it is confirmed.
- More is given out of free slots only. Who ought to have more has first to wait for others to
  confirm.
- A member that does not ask within the term is forgotten. Its lease is over by then.

What that asks of a member:

- It reckons a lease's end from when it sent the question: then its own end comes first, however
  long the answer took. At that end it begins nothing more until it has another lease.
- It ignores an answer with a serial below one that it has.
- It takes up to the lease of slots, and when it has more under way than a new lease allows, lets
  them end and begins none.
- It asks again at once when a lease took something away, and when what was too much has ended:
  others wait for that. A member that begins anew, with nothing under way, asks with serial 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from aiosollol.core.leasing.demand import SlotDemand
from aiosollol.core.leasing.fair_share import Party, SlotShares
from aiosollol.errors import InvalidInput

_MOST_LEASES = 32
"""Unconfirmed leases kept for a member. Of more, the oldest are taken together as one."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What a member may use until it asks again.

    slots: node -> how many requests it may have under way there, for every node that it may know,
    also where that is 0. until: when it ends unless it is renewed, in seconds on the book's clock.
    serial: goes up with every answer to this member.
    """

    slots: Mapping[str, int]
    until: float
    serial: int


@dataclass(frozen=True, slots=True)
class MemberSlots:
    """One member on one node: slots it has, ought to have because it wants them, and wants."""

    held: int
    target: int
    wants: int


@dataclass(frozen=True, slots=True)
class NodeLeases:
    """One node. `free` is below 0 where more is under way than its capacity allows."""

    capacity: int
    free: int
    members: Mapping[str, MemberSlots]


@dataclass(frozen=True, slots=True)
class GroupLeases:
    """One group; a member without one is a group of its own name.

    Slots are sums over all nodes: `fair` what its weight and its wants entitle it to, in fractions,
    and `held`. credit: slot-seconds owed to it; below 0, by it.
    """

    name: str
    members: tuple[str, ...]
    weight: float
    fair: float
    held: int
    credit: float


@dataclass(frozen=True, slots=True)
class LeaseStatistics:
    """All of a book at one time."""

    nodes: Mapping[str, NodeLeases]
    groups: tuple[GroupLeases, ...]


class _Member:
    """What the book knows of one member. leases: by serial, those it may be going by."""

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
        """It goes by the lease `serial`, or a later one."""
        if serial in self.leases:
            self.leases = {each: slots for each, slots in self.leases.items() if each >= serial}
            self.using = dict(using)
        else:  # an old question that comes late, or another book's lease: it proves nothing
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
        """The most that a lease which it may be going by allows it there."""
        most = 0
        for slots in self.leases.values():
            most = max(most, slots.get(node, 0))
        return most

    def holds(self, node: str) -> int:
        """The most that it may have under way there before it asks again."""
        return max(self.using.get(node, 0), self.leased(node))


class _Node:
    """A node in the book. held: member -> slots, without zeros; taken: their sum."""

    __slots__ = ("division", "held", "ranks", "taken")

    def __init__(self, division: SlotShares) -> None:
        self.division = division
        self.held: dict[str, int] = {}
        self.taken = 0
        self.ranks: dict[str, int] | None = None  # who knows it, in order; None if that changed

    def hold(self, member: str, slots: int) -> None:
        self.taken += slots - self.held.pop(member, 0)
        if slots:
            self.held[member] = slots


class LeaseBook:
    """Divides the slots of nodes among members, fairly by weight, and hands out none twice.

    term: seconds for which a lease is good. turn: seconds between two moves of a slot on a node for
    the sake of a fairness that whole slots cannot express at once. Every call takes `now`, seconds
    of a clock that never goes back. Raises InvalidInput for what makes no sense.

    Members of one group share its weight. Fairness is over all nodes together, by slot-seconds: who
    can use one node only has it before those who can use others. Slots that nobody wants are given
    in advance, evenly, and called back when somebody wants them. A group whose requests keep a slot
    for longer than its share waits for it afterwards; at most ten turns of one slot are counted.
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
        """The nodes, and how many requests each takes at once. One that is not named is forgotten.

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
        """A new lease for `member`, which takes the place of the one it has.

        group: members with the same one share one weight, the greatest that one of them named; a
        member without is alone. wants: requests it could have under way on each node now, those
        under way included. using: those under way. serial: of the last lease it has applied, 0 for
        none. nodes: those that it knows, and how many requests each takes as far as it can tell;
        then it is given slots of these only, and the least that anybody named counts.
        """
        _name(member, "a member")
        weight = _positive(weight, "a weight")
        wants, using = _counts(wants, "wants"), _counts(using, "using")
        knows = None if nodes is None else _counts(nodes, "the slots of nodes")
        if type(serial) is not int or serial < 0:
            raise InvalidInput(f"a serial must be a whole number from 0 on, not {serial!r}")
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
        """`member` is gone, and uses nothing any more. Nothing happens if it is not known."""
        self._pass_time(now)
        if member in self._members:
            self._forget(member)
            self._claims.settle(self._now)

    def expire(self, now: float) -> list[str]:
        """The members whose lease has ended since this was last asked. Their slots are free."""
        self._pass_time(now)
        self._claims.settle(self._now)
        expired, self._expired = self._expired, []
        return expired

    def statistics(self) -> LeaseStatistics:
        """What everybody has and wants, as of the last call."""
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
        """Of each node, the least that anybody named."""
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
        """Write down what a member wants and holds."""
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
                    # What it is using beyond its lease is a fact, but not its right.
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
        """Its part of the slots that nobody wants. `place`: the node's, so that what does not
        divide evenly goes to other members on other nodes."""
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
    """A copy of it. Raises InvalidInput unless it maps names to whole numbers from 0 on."""
    for name, count in counts.items():
        _name(name, "a node")
        if type(count) is not int or count < 0:
            raise InvalidInput(f"{what} must be whole numbers from 0 on, not {count!r} for {name}")
    return dict(counts)
