"""Members' demand for slots, their credits, and their target slots on all nodes.

`core.leasing.fair_share` divides one node; this module decides when, and keeps the accounts. A
group that had less than its fair share has a credit of slot-seconds, one that had more a debt. They
sum to zero: slots that were unusable while they moved between members are deducted from the fair
share of every group that wants more than its share.
"""

from __future__ import annotations

import math
from typing import TypeVar

from aiosollol.core.leasing.fair_share import (
    Group,
    Party,
    SlotDivision,
    SlotShares,
)

_CREDIT_TURNS = 10.0
"""Maximum credit or debt, in turns of one slot. A group with a credit of c slot-seconds may have
more than its share for c seconds or longer, so it must be bounded."""
_FADE_TURNS = 5.0  # turns after which the credit or debt of an idle group counts 1/e
_WORK = 200
"""Claims processed in one `settle`. The rest waits for the next, so that every call is fast."""

KeyT = TypeVar("KeyT")


class SlotDemand:
    """The target slots of each member on each node.

    turn: seconds between two moves of a node's slots to even out fractions; also the time in which
    a debt is to be repaid.
    """

    def __init__(self, turn: float) -> None:
        self.nodes: dict[str, SlotShares] = {}  # least recently divided first
        self.groups: dict[tuple[str, str], Group] = {}
        self._turn = turn
        self._now = self._parted_at = -math.inf
        self._changed: dict[
            str, bool
        ] = {}  # node -> whether a group without slots began to want it

    def set_capacity(self, name: str, capacity: int, now: float) -> SlotShares:
        node = self.nodes.get(name)
        if node is None:
            node = self.nodes[name] = SlotShares(capacity, now)
        node.capacity = capacity
        self._changed.setdefault(name, False)
        return node

    def remove_node(self, name: str) -> None:
        node = self.nodes[name]
        for party in [*node.wants, *node.targets]:
            self.want(party, name, 0)
            node.give(party, -node.targets.get(party, 0))
        node.fill()  # resets the fair shares to zero
        del self.nodes[name]
        self._changed.pop(name, None)

    def join(self, name: str, group: str, weight: float) -> Party:
        """Add a member. Without a group it forms one by itself."""
        key = (group, "" if group else name)
        if key not in self.groups:
            self.groups[key] = Group(key)
            self._parted_at = -math.inf
        owner = self.groups[key]
        party = Party(name, owner, weight)
        party.served = min((mate.served for mate in owner.parties.values()), default=0.0)
        owner.parties[name] = party
        self._reweigh(owner)
        return party

    def set_weight(self, party: Party, weight: float) -> None:
        if party.weight != weight:
            party.weight = weight
            self._reweigh(party.group)

    def remove(self, party: Party) -> None:
        """Remove a member with its wants and targets."""
        group = party.group
        for name, node in self.nodes.items():
            self.want(party, name, 0)
            if party in node.targets:
                node.give(party, -node.targets[party])
                self._changed.setdefault(name, False)
        self.charge(party, 0)
        del group.parties[party.name]
        if group.parties:
            self._reweigh(group)
            return
        for node in self.nodes.values():
            node.fair.pop(group, None)
        del self.groups[group.key]

    def want(self, party: Party, name: str, wants: int) -> None:
        """Set the number of requests the member could have on a node, including those in flight."""
        node = self.nodes[name]
        wants = min(wants, node.capacity)
        before = node.wants.get(party, 0)
        if wants == before:
            return
        group, more = party.group, wants - before
        _add(node.wants, party, more)
        _add(node.claims, group, more)
        party.wanted += more
        group.wanted += more
        least = min(wants, before)
        has = max(node.fair.get(group, 0.0), node.targets.get(party, 0))
        if has < least and len(group.parties) == 1:
            return  # its target is below its wants, before and after
        if not before and len(group.parties) > 1:
            short = [mate.served for mate in group.parties.values() if mate.is_short]
            party.served = max(party.served, min(short, default=0.0))
        is_new = not before and not group.target
        self._changed[name] = is_new or self._changed.get(name, False)

    def charge(self, party: Party, slots: int) -> None:
        """Set the number of slots that the member both has and wants, over all nodes."""
        party.group.charged += slots - party.charged
        party.charged = slots

    def pass_time(self, now: float) -> None:
        """Update the accounts to `now`."""
        seconds, self._now = now - self._now, max(now, self._now)
        if not 0.0 < seconds < math.inf:
            return
        most, fading = _CREDIT_TURNS * self._turn, math.exp(-seconds / (_FADE_TURNS * self._turn))
        scales = self._scales()
        for group in self.groups.values():
            if group.wanted or group.charged:
                due = group.fair * (scales[group.part] if group.is_short else 1.0)
                credit = group.credit + (due - group.charged) * seconds
                group.credit = min(most, max(-most, credit))
            else:
                group.credit *= fading
            if len(group.parties) > 1:
                self._serve(group, seconds, most)

    def _scales(self) -> dict[int, float]:
        """By part, the fraction of their fair share that is available to groups that want more.

        Parts are separate, so that slots lost on some nodes do not affect groups on other nodes.
        """
        had: dict[int, float] = {}
        fair: dict[int, float] = {}
        for group in self.groups.values():
            part, is_short = group.part, group.is_short
            had[part] = had.get(part, 0.0) + group.charged - (0.0 if is_short else group.fair)
            fair[part] = fair.get(part, 0.0) + (group.fair if is_short else 0.0)
        return {
            part: max(0.0, had[part]) / share if share > 0.0 else 1.0
            for part, share in fair.items()
        }

    def _part(self) -> None:
        """Number the parts: groups connected, directly or not, by nodes that they both want."""
        together: dict[Group, list[Group]] = {}
        for node in self.nodes.values():
            first: list[Group] | None = None
            for group in node.claims:
                those = together.get(group)
                if first is None:
                    first = together[group] = [group] if those is None else those
                elif those is None:
                    first.append(group)
                    together[group] = first
                elif those is not first:
                    first += those
                    together.update(dict.fromkeys(those, first))
        for number, group in enumerate(self.groups.values()):
            group.part = -1 - number  # a part of its own
        for number, those in enumerate({id(each): each for each in together.values()}.values()):
            for group in those:
                group.part = number

    @staticmethod
    def _serve(group: Group, seconds: float, most: float) -> None:
        for party in group.parties.values():
            party.served += party.charged * seconds
        low = min((mate.served for mate in group.parties.values() if mate.is_short), default=None)
        if low is not None:
            for party in group.parties.values():
                party.served = min(max(party.served, low), low + most)

    def settle(self, now: float) -> None:
        """Divide the nodes that changed, and those not divided for a turn."""
        if now >= self._parted_at + self._turn:
            self._parted_at = now
            self._part()
        work = _WORK
        for name in list(self._changed):
            if work <= 0:
                return
            work -= self._divide(name, now, is_new=self._changed.pop(name))
        for name, node in list(self.nodes.items()):
            if work <= 0 or now < node.seen_at + self._turn:
                return
            work -= self._divide(name, now)

    def _divide(self, name: str, now: float, *, is_new: bool = False) -> int:
        """Update the targets on one node. Returns the cost, in claims processed."""
        node = self.nodes[name] = self.nodes.pop(name)  # now the most recently divided
        node.seen_at = now
        node.fill()
        may_turn = is_new or now >= node.rotated_at + self._turn
        sharing = SlotDivision(node, self._turn, may_turn=may_turn)
        sharing.run()
        if sharing.moves:
            node.rotated_at = now
        return 1 + len(node.wants) * (1 + sharing.moves // 4)

    def _reweigh(self, group: Group) -> None:
        weight = max(party.weight for party in group.parties.values())
        if weight != group.weight:
            group.weight = weight
            for name, node in self.nodes.items():
                if group in node.claims:
                    self._changed.setdefault(name, False)


def _add(counts: dict[KeyT, int], key: KeyT, more: int) -> None:
    """Add `more` to a count, dropping zeros."""
    if total := counts.get(key, 0) + more:
        counts[key] = total
    else:
        counts.pop(key, None)
