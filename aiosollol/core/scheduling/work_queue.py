"""The waiting items of a batch, and the ledger of settled ones."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from aiosollol.errors import SollolError


@dataclass(slots=True, eq=False)
class _Piece:
    """Returned items, to be sent again before all others.

    avoid: the nodes that failed them, or that are still working on the original of a copy.
    """

    items: Sequence[int]
    tokens: float
    avoid: Collection[str] = ()


class WorkQueue:
    """Waiting items, longest first.

    At the end of a batch nodes wait for each other, so the last items should be short.
    `take` is O(log n) for any number of items: sizes are kept as prefix sums.

    times: number of equal texts per item, if more than one. Those items come first, and only items
    with the same number are taken together: see `token_counts`.
    """

    def __init__(self, tokens: Sequence[float], times: Mapping[int, int] | None = None) -> None:
        self._tokens = tokens
        # Stable, so that texts of one length stay in input order.
        self._order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
        self._bounds = [0, len(tokens)]  # of runs of items that may be taken together
        if times:
            self._order.sort(key=lambda item: times.get(item, 1), reverse=True)
            counts = [times.get(item, 1) for item in self._order]
            starts = (at for at in range(1, len(counts)) if counts[at] != counts[at - 1])
            self._bounds[1:1] = starts
        self._sums = list(accumulate(map(tokens.__getitem__, self._order), initial=0.0))
        self._head, self._tail = 0, len(self._order)
        self._pieces: deque[_Piece] = deque()
        self._piece_tokens = 0.0

    def __bool__(self) -> bool:
        return self._head < self._tail or bool(self._pieces)

    @property
    def tokens(self) -> float:
        """Tokens waiting."""
        return self._sums[self._tail] - self._sums[self._head] + self._piece_tokens

    def longest(self, node: str) -> float:
        """Tokens of the next item for `node`; infinity if there is none."""
        piece = self._piece_for(node)
        if piece is not None:
            return self._tokens[piece.items[0]]
        if self._head < self._tail:
            return self._tokens[self._order[self._head]]
        return float("inf")

    def shortest(self, node: str) -> float:
        """Tokens of the shortest item for `node`; infinity if there is none."""
        if self._head < self._tail:
            return self._tokens[self._order[self._tail - 1]]
        return self.longest(node)

    def take(
        self, node: str, tokens: float, count: int, *, shortest: bool = False
    ) -> tuple[Sequence[int], float]:
        """Take at least one item, up to `count` of `tokens` in total. Returns (items, tokens).

        shortest: take from the short end. Returns ``((), 0.0)`` if there is nothing for `node`.
        """
        piece = None if shortest and self._head < self._tail else self._piece_for(node)
        if piece is not None:
            return self._take_piece(piece, tokens, count)
        if self._head == self._tail:
            return (), 0.0
        sums, head, tail = self._sums, self._head, self._tail
        if shortest:
            first = self._bounds[bisect_left(self._bounds, tail) - 1]
            start = bisect_right(sums, sums[tail] - tokens - 1e-9, head, tail)
            start = min(max(start, tail - count, first), tail - 1)
            self._tail = start
            return self._order[start:tail], sums[tail] - sums[start]
        end = bisect_right(sums, sums[head] + tokens + 1e-9, head, tail + 1) - 1
        last = self._bounds[bisect_right(self._bounds, head)]
        end = max(min(end, head + count, last), head + 1)
        self._head = end
        return self._order[head:end], sums[end] - sums[head]

    def put_back(self, items: Sequence[int], *, avoid: Collection[str] = ()) -> None:
        """Queue `items` again, before all others, as a separate chunk.

        avoid: names of nodes that must not get them.
        """
        if not items:
            return
        tokens = sum(self._tokens[item] for item in items)
        self._pieces.append(_Piece(items, tokens, avoid))
        self._piece_tokens += tokens

    def discard(self, is_settled: Callable[[int], bool]) -> None:
        """Remove the returned items that have been settled."""
        pieces, self._pieces, self._piece_tokens = self._pieces, deque(), 0.0
        for piece in pieces:
            open_items = [item for item in piece.items if not is_settled(item)]
            if open_items:
                self.put_back(open_items, avoid=piece.avoid)

    def returned(self) -> set[int]:
        """The items put back into the queue and not taken again."""
        return {item for piece in self._pieces for item in piece.items}

    def forget_culprits(
        self, able: Collection[str] = (), keep: Callable[[int], bool] = lambda item: False
    ) -> list[int]:
        """Allow every node to take every piece that none of the nodes in `able` may take.

        Single items for which `keep` is true are taken out of the queue and returned instead.
        """
        kept: list[int] = []
        for piece in list(self._pieces):
            if all(name in piece.avoid for name in able):
                if len(piece.items) == 1 and keep(piece.items[0]):
                    kept += piece.items
                    self._pieces.remove(piece)
                    self._piece_tokens -= piece.tokens
                piece.avoid = ()
        if not self._pieces:
            self._piece_tokens = 0.0
        return kept

    def drain(self) -> list[int]:
        """Take all items."""
        items = self._order[self._head : self._tail]
        for piece in self._pieces:
            items.extend(piece.items)
        self._head = self._tail
        self._pieces.clear()
        self._piece_tokens = 0.0
        return items

    def _piece_for(self, node: str) -> _Piece | None:
        for piece in self._pieces:
            if node not in piece.avoid:
                return piece
        return None

    def _take_piece(self, piece: _Piece, tokens: float, count: int) -> tuple[Sequence[int], float]:
        taken, total = 0, 0.0
        for item in piece.items:
            size = self._tokens[item]
            if taken and (taken == count or total + size > tokens + 1e-9):
                break
            taken, total = taken + 1, total + size
        items, rest = piece.items[:taken], piece.items[taken:]
        self._pieces.remove(piece)
        if rest:
            piece.items, piece.tokens = rest, piece.tokens - total
            self._pieces.appendleft(piece)
        self._piece_tokens = max(0.0, self._piece_tokens - total) if self._pieces else 0.0
        return items, total


class ItemLedger:
    """Which of the `count` items of a batch are settled. An item is settled only once.

    open: number of items that are not settled.
    errors: errors by item, for items settled by an error.
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
        """Settle `items` with an answer. Returns how many were not settled before."""
        won = self.unsettled(items)
        for item in won:
            self._settled[item] = 1
        self.open -= len(won)
        return len(won)

    def give_up(self, item: int, error: SollolError) -> None:
        """Settle an item with an error."""
        if not self._settled[item]:
            self._settled[item] = 1
            self.open -= 1
            self.errors[item] = error

    def give_up_all(self, error: SollolError) -> None:
        for item in range(self.count):
            self.give_up(item, error)

    def attempt(self, items: Sequence[int]) -> int:
        """Record a failed request with `items`. Returns the highest failure count among them.

        The count decides only how items are sent again, not whether they are given up.
        """
        attempts = max((self._attempts.get(item, 0) for item in items), default=0) + 1
        for item in items:
            self._attempts[item] = attempts
        return attempts

    def copy(self, items: Iterable[int]) -> None:
        """Record that `items` are sent a second time."""
        self._copied.update(items)

    def is_copy(self, items: Iterable[int]) -> bool:
        """Whether any of `items` is sent a second time."""
        return not self._copied.isdisjoint(items)
