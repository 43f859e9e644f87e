"""The vectors of a batch in one contiguous float32 buffer, in input order."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

OnVectors = Callable[[Sequence[int], "memoryview[float]"], None]
"""Called with (rows, vectors): float32 of shape (len(rows), dimensions), read-only."""

_FLOAT_BYTES = 4
_RUN = 256  # rows of equal texts that are copied at once
_NAN = array("f", [float("nan")]).tobytes()


class VectorBuffer:
    """Rows of float32, allocated when the first vector gives their length.

    Each distinct text is one entry, which may fill several rows.

    places: first row of each entry.
    repeats: the other rows of an entry.
    on_vectors: called one or more times per `put`.
    """

    def __init__(
        self,
        count: int,
        places: Sequence[int],
        repeats: dict[int, list[int]] | None = None,
        on_vectors: OnVectors | None = None,
    ) -> None:
        self.count = count
        self.dim = 0
        self._places = places
        self._repeats = repeats or {}
        self._on_vectors = on_vectors
        self._bytes = bytearray()
        self._view = memoryview(self._bytes)

    def put(self, entries: Sequence[int], floats: memoryview[float], dim: int) -> None:
        """Copy ``len(entries)`` vectors of length `dim` to their rows.

        Raises ValueError if `dim` differs from that of earlier vectors.
        """
        if not self.dim:
            self._allocate(dim)
        if dim != self.dim:
            raise ValueError(f"expected vectors of {self.dim} dimensions, got {dim}")
        size = dim * _FLOAT_BYTES
        source, target, places = floats.cast("B"), self._view, self._places
        rows = [places[entry] for entry in entries]
        first, last = rows[0], rows[-1] + 1
        if rows == list(range(first, last)):  # consecutive rows: texts of equal length
            target[first * size : last * size] = source
        else:
            at = 0
            for row in rows:
                target[row * size : (row + 1) * size] = source[at : at + size]
                at += size
        if self._on_vectors is not None:
            self._on_vectors(rows, _table(source, dim))
        if self._repeats:
            for entry in entries:
                for first, last in _runs(self._repeats.get(entry, ())):
                    self._copy_rows(places[entry], first, last)

    def rows_of(self, entry: int) -> list[int]:
        """All rows of `entry`."""
        return [self._places[entry], *self._repeats.get(entry, ())]

    def clear_row(self, row: int) -> None:
        """Fill a row that has no vector with NaN."""
        size = self.dim * _FLOAT_BYTES
        self._view[row * size : (row + 1) * size] = _NAN * self.dim

    def finish(self) -> memoryview[int]:
        """The buffer. Do not call `put` afterwards."""
        return self._view

    def _allocate(self, dim: int) -> None:
        self.dim = dim
        self._bytes = bytearray(self.count * dim * _FLOAT_BYTES)
        self._view = memoryview(self._bytes)

    def _copy_rows(self, source: int, first: int, last: int) -> None:
        """Copy a row to those from `first` to before `last`."""
        size = self.dim * _FLOAT_BYTES
        view = self._view
        target = view[first * size : last * size]
        target[:] = bytes(view[source * size : (source + 1) * size]) * (last - first)
        if self._on_vectors is not None:
            self._on_vectors(range(first, last), _table(target, self.dim))


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive rows, of up to `_RUN` each."""
    at = 0
    while at < len(rows):
        end = at + 1
        while end < len(rows) and end - at < _RUN and rows[end] == rows[end - 1] + 1:
            end += 1
        yield rows[at], rows[end - 1] + 1
        at = end


def _table(data: memoryview[int], dim: int) -> memoryview[float]:
    return data.toreadonly().cast("f", (len(data) // (dim * _FLOAT_BYTES), dim))
