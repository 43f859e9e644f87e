"""`SharedCounts`: what each process of a gateway has admitted, in memory that all of them map."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from hashlib import blake2b

_WINDOW = 8
"""Cells in which a client may be: the first is chosen by the hash of its name."""
_TAG, _IN_FLIGHT, _TOKENS, _AT, _FIELDS = range(5)
_NUMBER = 8  # bytes
_EMPTY = memoryview(bytes((_FIELDS - 1) * _NUMBER)).cast("Q")


class Cell:
    """What this process and the others have admitted of one client."""

    __slots__ = ("_counts", "_place", "_tag")

    def __init__(self, counts: SharedCounts, tag: int, place: int) -> None:
        self._counts = counts
        self._tag = tag
        self._place = place

    def set_in_flight(self, count: int) -> None:
        """Set this process's requests in flight."""
        self._counts.numbers[self._place + _IN_FLIGHT] = count

    def in_flight_elsewhere(self) -> int:
        """The requests in flight in the other processes."""
        numbers = self._counts.numbers
        return sum(numbers[at + _IN_FLIGHT] for at in self._counts.elsewhere(self._tag))

    def set_bucket(self, tokens: float, at: float) -> None:
        """Set the token bucket as this process has left it at a time."""
        self._counts.floats[self._place + _TOKENS] = tokens
        self._counts.floats[self._place + _AT] = at

    def bucket(self) -> tuple[float, float]:
        """The tokens of the bucket and their time, as the last process left it; (0, 0) if none."""
        floats = self._counts.floats
        places = (self._place, *self._counts.elsewhere(self._tag))
        at, debt = max((floats[each + _AT], -floats[each + _TOKENS]) for each in places)
        return -debt, at

    def clear(self) -> None:
        """Forget the client in this process."""
        self._counts.numbers[self._place] = 0


class SharedCounts:
    """A file of counts that the processes of one gateway map. Not for Windows.

    Each process writes to its own part only, and reads those of the others, so there is no lock.
    The file is sparse.

    path: of the file, which the first process creates, in a folder of this user only.
    index, count: of this process, and their number. A restarted process begins at 0 again.
    clients: for how many there is room at once; others are counted in their process only.
    """

    def __init__(self, path: str, index: int, count: int, *, clients: int = 16_384) -> None:
        self._cells = clients
        self._part = (clients + _WINDOW) * _FIELDS
        self._index = index
        self._count = count
        size = self._part * _NUMBER
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(file).st_size < size * count:
                os.ftruncate(file, size * count)
            mapped = mmap.mmap(file, size * count)
        finally:
            os.close(file)
        self.numbers = memoryview(mapped).cast("Q")
        self.floats = memoryview(mapped).cast("d")
        mine = slice(index * self._part, (index + 1) * self._part)
        self.numbers[mine] = memoryview(bytes(size)).cast("Q")

    def cell(self, name: str) -> Cell | None:
        """A cell for a client of this process; None if there is no room."""
        tag = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1
        numbers = self.numbers
        for at in self._window(self._index, tag):
            if not numbers[at]:
                numbers[at + 1 : at + _FIELDS] = _EMPTY
                numbers[at] = tag
                return Cell(self, tag, at)
        return None

    def elsewhere(self, tag: int) -> Iterator[int]:
        """The places of a client's cells in the parts of the other processes."""
        numbers = self.numbers
        for index in range(self._count):
            if index != self._index:
                for at in self._window(index, tag):
                    if numbers[at] == tag:
                        yield at
                        break

    def _window(self, index: int, tag: int) -> range:
        first = index * self._part + tag % self._cells * _FIELDS
        return range(first, first + _WINDOW * _FIELDS, _FIELDS)
