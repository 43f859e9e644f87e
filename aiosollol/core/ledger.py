"""Which items of a batch are settled, by an answer or an error, and how often each was tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiosollol.errors import SollolError


class ItemLedger:
    """The account of a batch of `count` items. An item is settled once and for all.

    open: items that are not settled. errors: item -> its error, for those settled by one.
    """

    def __init__(self, count: int) -> None:
        self._settled = bytearray(count)
        self._copied: set[int] = set()
        self._attempts: dict[int, int] = {}
        self.count = count
        self.open = count
        self.errors: dict[int, SollolError] = {}

    def is_settled(self, item: int) -> bool:
        return self._settled[item] == 1

    def are_settled(self, items: Iterable[int]) -> bool:
        """Whether every one of `items` is settled."""
        settled = self._settled
        return all(settled[item] for item in items)

    def unsettled(self, items: Iterable[int]) -> list[int]:
        settled = self._settled
        return [item for item in items if not settled[item]]

    def answer(self, items: Sequence[int]) -> int:
        """Settle `items` by an answer. Returns how many were not settled before."""
        won = self.unsettled(items)
        for item in won:
            self._settled[item] = 1
        self.open -= len(won)
        return len(won)

    def give_up(self, item: int, error: SollolError) -> None:
        """Settle an item by an error."""
        if not self._settled[item]:
            self._settled[item] = 1
            self.open -= 1
            self.errors[item] = error

    def give_up_all(self, error: SollolError) -> None:
        for item in range(self.count):
            self.give_up(item, error)

    def attempt(self, items: Sequence[int]) -> int:
        """Note that a request with `items` failed. Returns how often the worst of them did."""
        attempts = max((self._attempts.get(item, 0) for item in items), default=0) + 1
        for item in items:
            self._attempts[item] = attempts
        return attempts

    def attempts(self, item: int) -> int:
        """Failed requests that held this item."""
        return self._attempts.get(item, 0)

    def copy(self, items: Iterable[int]) -> None:
        """Note that `items` are handed out a second time."""
        self._copied.update(items)

    def is_copy(self, items: Iterable[int]) -> bool:
        """Whether any of `items` is handed out a second time."""
        return not self._copied.isdisjoint(items)
