"""The partitions of a batch on their way to workers that may die over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Parcel:
    """A partition. index: its number in the batch. deaths: of workers that had it."""

    index: int
    items: range
    deaths: int = 0


class Parcels:
    """Which partition is next. cut: all of them, in order, made as they are asked for.

    most_deaths: workers that may die over one until it is given up.
    """

    def __init__(self, cut: Iterator[range], most_deaths: int) -> None:
        self._cut = cut
        self._most_deaths = most_deaths
        self._count = 0
        self._again: deque[Parcel] = deque()
        self._out: dict[int, Parcel] = {}

    def take(self) -> Parcel | None:
        """The next one for a worker, those that were lost first; None if there is none now."""
        if self._again:
            parcel = self._again.popleft()
        else:
            items = next(self._cut, None)
            if items is None:
                return None
            parcel = Parcel(self._count, items)
            self._count += 1
        self._out[parcel.index] = parcel
        return parcel

    def settle(self, parcel: Parcel) -> None:
        """It is done, or is given up."""
        self._out.pop(parcel.index, None)

    def lost(self, parcel: Parcel) -> bool:
        """A worker died over it. Whether it is to be done again."""
        self.settle(parcel)
        parcel.deaths += 1
        if parcel.deaths >= self._most_deaths:
            return False
        self._again.append(parcel)
        return True

    def left(self) -> Iterator[range]:
        """What is not settled."""
        for parcel in [*self._out.values(), *self._again]:
            yield parcel.items
        yield from self._cut
