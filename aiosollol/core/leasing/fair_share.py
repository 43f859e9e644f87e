"""Fair division of one node's slots among the groups that want them, in whole slots.

There are two steps:

- Fair shares, in fractions, by water filling: each group that wants the node starts at the level
  of its share on other nodes / weight, and capacity goes to the lowest level, up to what the group
  wants (`water`). Repeated over all nodes, this converges to weighted max-min fairness over all
  nodes together: each step lowers the sum of the squared shares over the weights, which is convex.
- Whole slots. Each goes to the group with the largest deficit: fair share + credit / turn - slots,
  over all nodes. A slot moves only if that makes the two groups more equal, so it stays if both
  are equally fair. Credit is the slot-seconds a group had too little (`core.leasing.demand`).

The members of a group share its slots in the same way, by the slot-seconds they were served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-9


def water(capacity: float, claims: Sequence[tuple[float, float, float]]) -> list[float]:
    """Weighted max-min fair shares of `capacity`, in the order of `claims`.

    A claim is (weight, wants, elsewhere): it gets at most `wants`, and counts as already having
    `elsewhere`. All wants are met if `capacity` suffices; otherwise all of it is given out.
    """
    if sum(wants for _, wants, _ in claims) <= capacity:
        return [wants for _, wants, _ in claims]
    bends = []  # (level, change): points where the inflow per unit of level changes
    for weight, wants, elsewhere in claims:
        bends.append((elsewhere / weight, weight))
        bends.append(((elsewhere + wants) / weight, -weight))
    bends.sort()
    level, slope, left = bends[0][0], 0.0, capacity
    for at, change in bends:
        inflow = slope * (at - level)
        if inflow >= left:
            break
        left -= inflow
        level = at
        slope += change
    if slope > _EPSILON:
        level += left / slope
    return [min(wants, max(0.0, level * weight - elsewhere)) for weight, wants, elsewhere in claims]


class Group:
    """Members that share one weight, the highest that any of them reported.

    credit: slot-seconds owed to it.
    fair, target, charged, wanted: sums over all nodes, in slots: its fair share, its whole slots,
    the slots it both has and wants, and the slots it wants.
    part: number of its connected component, see `SlotDemand._part`.
    """

    __slots__ = (
        "charged",
        "credit",
        "fair",
        "key",
        "part",
        "parties",
        "target",
        "wanted",
        "weight",
    )

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.parties: dict[str, Party] = {}
        self.fair = self.credit = 0.0
        self.target = self.charged = self.wanted = 0
        self.part = 0
        self.weight = 1.0

    @property
    def is_short(self) -> bool:
        """Whether it wants more than its fair share."""
        return self.fair < self.wanted - _EPSILON


class Party:
    """One member. target, charged, wanted: as in `Group`. served: slot-seconds charged to it."""

    __slots__ = ("charged", "group", "name", "served", "target", "wanted", "weight")

    def __init__(self, name: str, group: Group, weight: float) -> None:
        self.name = name
        self.group = group
        self.weight = weight
        self.target = self.charged = self.wanted = 0
        self.served = 0.0

    @property
    def is_short(self) -> bool:
        return self.target < self.wanted


class SlotShares:
    """The slots of one node.

    wants, targets: slots by member, without zeros.
    claims: wants by group.
    fair: fair share by group, in fractions.
    """

    __slots__ = ("capacity", "claims", "fair", "rotated_at", "seen_at", "targets", "wants")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self.wants: dict[Party, int] = {}
        self.targets: dict[Party, int] = {}
        self.claims: dict[Group, int] = {}
        self.fair: dict[Group, float] = {}
        self.rotated_at = -math.inf
        self.seen_at = now

    @property
    def spare(self) -> int:
        """Slots that no member wants."""
        return max(0, self.capacity - sum(self.targets.values()))

    def give(self, party: Party, slots: int) -> None:
        """Raise the member's target by `slots`, or lower it if negative."""
        if slots:
            total = self.targets.get(party, 0) + slots
            if total:
                self.targets[party] = total
            else:
                del self.targets[party]
            party.target += slots
            party.group.target += slots

    def fill(self) -> None:
        """Recompute the fair shares on this node, given the shares on the others."""
        claims = [
            (group.weight, float(wants), max(0.0, group.fair - self.fair.get(group, 0.0)))
            for group, wants in self.claims.items()
        ]
        shares = dict(zip(self.claims, water(self.capacity, claims), strict=True))
        for group in {**self.fair, **shares}:
            before = self.fair.get(group, 0.0)
            group.fair = max(0.0, group.fair - before + shares.get(group, 0.0))
        self.fair = shares


class SlotDivision:
    """One division of one node's slots: `run` changes its targets.

    turn: seconds in which a credit is to be repaid.
    may_turn: whether a slot may move because of credits alone. Otherwise it moves only if it would
    both with and without them, so that an unfair division by whole slots is corrected at once.
    moves: number of slots moved.
    """

    def __init__(self, node: SlotShares, turn: float, *, may_turn: bool) -> None:
        self._node = node
        self._turn = turn
        self._may_turn = may_turn
        self.moves = 0
        for party, slots in list(node.targets.items()):
            node.give(party, min(0, node.wants.get(party, 0) - slots))
        self._short: dict[Group, list[Party]] = {}
        self._having: dict[Group, list[Party]] = {}
        for party, wants in node.wants.items():
            has = node.targets.get(party, 0)
            if has:
                self._having.setdefault(party.group, []).append(party)
            if has < wants:
                self._short.setdefault(party.group, []).append(party)
        # Takers are sorted by deficit, largest first; givers too, so the smallest is last.
        self._taking: dict[Group, tuple[float, tuple[str, str]]] = {}
        self._giving: dict[Group, tuple[float, tuple[str, str]]] = {}
        for group in node.claims:
            self._weigh(group)

    def run(self) -> None:
        node, short, having = self._node, self._short, self._having
        room = node.capacity - sum(node.targets.values())
        while room < 0:
            self._change(self._giver(max(having, key=self._giving.__getitem__)), -1)
            room += 1
        while room and short:
            self._change(self._taker(min(short, key=self._taking.__getitem__)), 1)
            room -= 1
        while short and having:
            taker = min(short, key=self._taking.__getitem__)
            giver = max(having, key=self._giving.__getitem__)
            if self._giving[giver][0] - self._taking[taker][0] <= 1.0 + _EPSILON:
                break
            self._move(self._giver(giver), self._taker(taker))
        for group in list(short):
            while self._is_uneven(group):
                self._move(self._giver(group), self._taker(group))

    def _is_uneven(self, group: Group) -> bool:
        """Whether a slot should move within the group."""
        if len(group.parties) < 2 or group not in self._short or group not in self._having:
            return False
        giver, taker = self._giver(group), self._taker(group)
        if self._level(giver)[0] - self._level(taker)[0] <= 1.0 + _EPSILON:
            return False
        return self._may_turn or giver.target - taker.target > 1

    def _weigh(self, group: Group) -> None:
        plain, owed = group.fair - group.target, group.credit / self._turn
        taking = owed if self._may_turn else min(0.0, owed)
        giving = owed if self._may_turn else max(0.0, owed)
        self._taking[group] = -round(plain + taking, 9), group.key
        self._giving[group] = -round(plain + giving, 9), group.key

    def _level(self, party: Party) -> tuple[float, str]:
        return round(party.target + party.served / self._turn, 9), party.name

    def _taker(self, group: Group) -> Party:
        return min(self._short[group], key=self._level)

    def _giver(self, group: Group) -> Party:
        return max(self._having[group], key=self._level)

    def _move(self, giver: Party, taker: Party) -> None:
        self._change(giver, -1)
        self._change(taker, 1)
        self.moves += 1

    def _change(self, party: Party, slots: int) -> None:
        node = self._node
        before, wants = node.targets.get(party, 0), node.wants[party]
        node.give(party, slots)
        _list(self._having, party, was=before > 0, now=before + slots > 0)
        _list(self._short, party, was=before < wants, now=before + slots < wants)
        self._weigh(party.group)


def _list(lists: dict[Group, list[Party]], party: Party, *, was: bool, now: bool) -> None:
    """Add `party` to its group's list or remove it, without leaving an empty list."""
    group = party.group
    if now and not was:
        lists.setdefault(group, []).append(party)
    elif was and not now:
        lists[group].remove(party)
        if not lists[group]:
            del lists[group]
