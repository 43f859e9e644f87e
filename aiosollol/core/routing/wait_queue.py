"""Who is next of those that wait for a place on a node.

A request has a priority from 1 to 10, as in the original: 10 goes first, 5 is usual. Nobody waits
for ever behind others: each step of priority is worth `AGING_SECONDS` of waiting. So what counts is
when a request came, less that much for each step, and that never changes while it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from aiosollol.errors import InvalidInput, PoolSaturated

LOWEST, USUAL, HIGHEST = 1, 5, 10
AGING_SECONDS = 5.0
"""A request of priority 1 is overtaken by those of 10 that come within 45 s, and by no others."""

ItemT = TypeVar("ItemT")


def check_priority(priority: object) -> int:
    """`priority` itself. Raises InvalidInput unless it is a whole number from 1 to 10."""
    is_whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not is_whole or not LOWEST <= priority <= HIGHEST:  # type: ignore[operator]
        raise InvalidInput(
            f"priority must be a whole number from {LOWEST} to {HIGHEST}, where {HIGHEST} goes "
            f"first, not {priority!r}"
        )
    return priority  # type: ignore[return-value]


def saturated(seconds: float) -> PoolSaturated:
    """The error of a request that waited `seconds` for a place on a node."""
    return PoolSaturated(
        f"no node had a place within {seconds:.1f} s; "
        "send fewer at once, add nodes, or raise wait_timeout"
    )


class Ticket(Generic[ItemT]):
    """A place in a line. `item` is who waits, `line` for which node, `is_waiting` whether still."""

    __slots__ = ("_came", "_key", "is_waiting", "item", "line")

    def __init__(self, item: ItemT, line: str, key: float, came: int) -> None:
        self.item = item
        self.line = line
        self.is_waiting = True
        self._key = key
        self._came = came

    def __lt__(self, other: Ticket[ItemT]) -> bool:
        return (self._key, self._came) < (other._key, other._came)


class WaitingRoom(Generic[ItemT]):
    """Who waits, in a line for each node, at most `limit` in all.

    Adding, taking and leaving cost O(log n): who leaves from the middle stays in the heap, marked,
    until there are more of those than of others.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lines: dict[str, list[Ticket[ItemT]]] = {}
        self._waiting: dict[str, int] = {}
        self._total = 0
        self._came = 0

    def __len__(self) -> int:
        return self._total

    @property
    def is_full(self) -> bool:
        return self._total >= self.limit

    def count(self, line: str) -> int:
        """How many wait in `line`."""
        return self._waiting.get(line, 0)

    def add(
        self, item: ItemT, line: str, now: float, priority: int = USUAL
    ) -> Ticket[ItemT] | None:
        """Let `item` wait in `line`. None if the room is full: the caller raises PoolSaturated."""
        if self.is_full:
            return None
        self._came += 1
        ticket = Ticket(item, line, now - AGING_SECONDS * priority, self._came)
        self._push(ticket)
        return ticket

    def take(self, line: str) -> ItemT | None:
        """Who is next in `line`, who leaves it by this; None if nobody waits."""
        heap = self._lines.get(line)
        while heap:
            ticket = heappop(heap)
            if ticket.is_waiting:
                self._leave(ticket)
                return ticket.item
        return None

    def peek(self, line: str) -> ItemT | None:
        """Who is next in `line`, who stays there; None if nobody waits."""
        heap = self._lines.get(line)
        while heap:
            if heap[0].is_waiting:
                return heap[0].item
            heappop(heap)
        return None

    def remove(self, ticket: Ticket[ItemT]) -> bool:
        """Let the holder of `ticket` leave; False if it was taken already.

        Of two who race for it, the taker and the one who leaves, one wins.
        """
        if not ticket.is_waiting:
            return False
        self._leave(ticket)
        heap = self._lines.get(ticket.line, [])
        if len(heap) > 2 * self.count(ticket.line) + 8:
            heap[:] = [each for each in heap if each.is_waiting]
            heapify(heap)
        return True

    def move(self, ticket: Ticket[ItemT], line: str) -> Ticket[ItemT] | None:
        """A new ticket for another line, where time and priority count on; the old one is void.

        None if the old one was taken already.
        """
        if not self.remove(ticket):
            return None
        moved = Ticket(ticket.item, line, ticket._key, ticket._came)
        self._push(moved)
        return moved

    def tickets(self, line: str) -> list[Ticket[ItemT]]:
        """The tickets of everybody in `line`, in no order."""
        return [ticket for ticket in self._lines.get(line, ()) if ticket.is_waiting]

    def front(self, line: str, most: int) -> list[Ticket[ItemT]]:
        """The tickets of the first `most` in `line`, in order, without a look at the others."""
        heap = self._lines.get(line, [])
        found: list[Ticket[ItemT]] = []
        next_ones = [(heap[0], 0)] if heap else []
        while next_ones and len(found) < most:
            ticket, index = heappop(next_ones)
            if ticket.is_waiting:
                found.append(ticket)
            for child in range(2 * index + 1, min(2 * index + 3, len(heap))):
                heappush(next_ones, (heap[child], child))
        return found

    def standing(self, line: str) -> list[Ticket[ItemT]]:
        """The tickets of everybody in `line`, in order: to be moved when its node is gone."""
        return sorted(ticket for ticket in self._lines.get(line, ()) if ticket.is_waiting)

    def __iter__(self) -> Iterator[ItemT]:
        """Everybody who waits, line by line, each in order."""
        for line in list(self._lines):
            for ticket in self.standing(line):
                yield ticket.item

    def _push(self, ticket: Ticket[ItemT]) -> None:
        heappush(self._lines.setdefault(ticket.line, []), ticket)
        self._waiting[ticket.line] = self.count(ticket.line) + 1
        self._total += 1

    def _leave(self, ticket: Ticket[ItemT]) -> None:
        ticket.is_waiting = False
        self._total -= 1
        self._waiting[ticket.line] -= 1
        if not self._waiting[ticket.line]:
            del self._waiting[ticket.line], self._lines[ticket.line]
