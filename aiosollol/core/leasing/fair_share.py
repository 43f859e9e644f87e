"""How the slots of one node are divided among those that want them: fairly, in whole slots.

Two steps, each by one rule:

- What would be fair, in fractions. A node is filled like a vessel with steps in it: each group that
  wants it starts at what it has on the other nodes per weight, and the water goes where the level
  is lowest, up to what is wanted (`water`). Done for one node after another, again and again, this
  leads to max-min fairness by weight over all nodes together: the sum of the squares of what the
  groups have, over their weights, falls with every step, and it is convex.
- Whole slots. Each goes to the group that lacks most: its fair share + credit / turn - slots, over
  all nodes. A slot is moved only if that makes the two more equal, so it stays where it is when it
  is fair there too. Credit is slot-seconds that a group had too little: `core.leasing.demand` keeps
  it.

The members of one group share its slots in the same way, by what they were served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_EPSILON = 1e-9


def water(capacity: float, claims: Sequence[tuple[float, float, float]]) -> list[float]:
    """What each of `claims` gets of `capacity`: max-min fair by weight, in the same order.

    A claim is (weight, wants, elsewhere): it gets at most `wants`, and counts as having `elsewhere`
    already. What all want is given if there is so much; otherwise all of `capacity` is.
    """
    if sum(wants for _, wants, _ in claims) <= capacity:
        return [wants for _, wants, _ in claims]
    bends = []  # where the inflow that raises the level by one changes, and by how much
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
    """Members that share one weight: the greatest that one of them named.

    credit: slot-seconds owed to it. Sums over all nodes, in slots: `fair` what it should have,
    `target` what it is to have, `charged` what it has and wants, `wanted`. part: a number that it
    shares with the groups it has to do with.
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
    """One member. target, charged, wanted: as in `Group`; served: slot-seconds charged to it."""

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
    """The slots of one node. By member: `wants` and `targets`, without zeros. By group: `claims`,
    the sums of wants, and `fair`, its share in fractions."""

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
        """Slots that nobody is to have because nobody wants them."""
        return max(0, self.capacity - sum(self.targets.values()))

    def give(self, party: Party, slots: int) -> None:
        """So many more are meant for it, or fewer if negative."""
        if slots:
            total = self.targets.get(party, 0) + slots
            if total:
                self.targets[party] = total
            else:
                del self.targets[party]
            party.target += slots
            party.group.target += slots

    def fill(self) -> None:
        """What would be fair here, in fractions, given what all have elsewhere."""
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
    """One division of one node's slots, which changes its targets. `moves` counts the slots moved.

    turn: seconds in which a credit is to be made good. may_turn: whether a slot may move for the
    sake of credits alone. Otherwise it moves only if it would without them as well as with them:
    whole slots that are not fair at all need not wait for their turn.
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
        # What lacks most comes first among takers, what lacks least last among givers.
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
    """Keep `party` in the list of its group while it belongs there, and no empty list."""
    group = party.group
    if now and not was:
        lists.setdefault(group, []).append(party)
    elif was and not now:
        lists[group].remove(party)
        if not lists[group]:
            del lists[group]
