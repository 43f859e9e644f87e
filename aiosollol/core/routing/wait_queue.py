"""Priority queues of requests that wait for a slot on a node.

A request has a priority from 1 to 10, as in the original: 10 goes first, 5 is the default. Aging
prevents starvation: each step of priority is worth `AGING_SECONDS` of waiting. The sort key is the
arrival time minus that much per step, which does not change while the request waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

from aiosollol.errors import InvalidInput, PoolSaturated

LOWEST, LOW, USUAL, HIGHEST = 1, 3, 5, 10
"""`LOW` is the default of many prompts at once."""
AGING_SECONDS = 5.0
"""A request of priority 1 is overtaken by those of priority 10 that arrive up to 45 s later."""

ItemT = TypeVar("ItemT")


def check_priority(priority: object) -> int:
    """Return `priority`. Raises InvalidInput unless it is a whole number from 1 to 10."""
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
    """A position in a queue.

    item: the waiting request.
    line: the queue, named after its node.
    is_waiting: False once taken or removed.
    """

    __slots__ = ("_came", "_key", "is_waiting", "item", "line")

    def __init__(self, item: ItemT, line: str, key: float, came: int) -> None:
        self.item = item
        self.line = line
        self.is_waiting = True
        self._key = key
        self._came = came

    def __lt__(self, other: Ticket[Any]) -> bool:
        return (self._key, self._came) < (other._key, other._came)


class WaitingRoom(Generic[ItemT]):
    """The waiting items, in a queue per node, at most `limit` in total.

    `add`, `take` and `remove` are O(log n) amortised: an item removed from the middle stays in the
    heap, marked, until such items outnumber the others.
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
        """The number of items in `line`."""
        return self._waiting.get(line, 0)

    def add(
        self, item: ItemT, line: str, now: float, priority: int = USUAL
    ) -> Ticket[ItemT] | None:
        """Add `item` to `line`. None if the room is full: the caller raises PoolSaturated."""
        if self.is_full:
            return None
        self._came += 1
        ticket = Ticket(item, line, now - AGING_SECONDS * priority, self._came)
        self._push(ticket)
        return ticket

    def take(self, line: str) -> ItemT | None:
        """Remove and return the next item of `line`; None if it is empty."""
        heap = self._lines.get(line)
        while heap:
            ticket = heappop(heap)
            if ticket.is_waiting:
                self._leave(ticket)
                return ticket.item
        return None

    def remove(self, ticket: Ticket[ItemT]) -> bool:
        """Remove the item of `ticket`; False if it was already taken.

        If `take` and `remove` race for an item, exactly one of them gets it.
        """
        if not ticket.is_waiting:
            return False
        self._leave(ticket)
        heap = self._lines.get(ticket.line, [])
        if len(heap) > 2 * self.count(ticket.line) + 8:
            heap[:] = [each for each in heap if each.is_waiting]
            heapify(heap)
        return True

    def tickets(self, line: str) -> list[Ticket[ItemT]]:
        """The tickets in `line`, unordered."""
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
        """The tickets in `line`, in order, for moving them when its node is gone."""
        return sorted(ticket for ticket in self._lines.get(line, ()) if ticket.is_waiting)

    def __iter__(self) -> Iterator[ItemT]:
        """All waiting items, line by line, each in order."""
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
