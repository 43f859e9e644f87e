"""Where the vectors of a batch land: one contiguous float32 buffer, in input order."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

OnVectors = Callable[[Sequence[int], "memoryview[float]"], None]
"""Called with (rows, vectors): float32 of shape (len(rows), dimensions), read-only."""

_FLOAT_BYTES = 4
_NAN = array("f", [float("nan")]).tobytes()


class VectorBuffer:
    """Rows of float32, made when the first vector tells their length.

    Each different text has one entry, and may stand at several places: `places` maps entries to
    their first row, `repeats` to the others. on_vectors: called after each `put`, perhaps several
    times.
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

        Raises ValueError if `dim` is not that of the vectors before.
        """
        if not self.dim:
            self._allocate(dim)
        if dim != self.dim:
            raise ValueError(f"vectors of {dim} do not fit among vectors of {self.dim}")
        size = dim * _FLOAT_BYTES
        source, target, places = floats.cast("B"), self._view, self._places
        rows = [places[entry] for entry in entries]
        first, last = rows[0], rows[-1] + 1
        if rows == list(range(first, last)):  # texts of one length, as they came
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
                for row in self._repeats.get(entry, ()):
                    self._copy_row(places[entry], row)

    def rows_of(self, entry: int) -> list[int]:
        """Every row at which `entry` stands."""
        return [self._places[entry], *self._repeats.get(entry, ())]

    def clear_row(self, row: int) -> None:
        """Fill a row with NaN: it has no vector."""
        size = self.dim * _FLOAT_BYTES
        self._view[row * size : (row + 1) * size] = _NAN * self.dim

    def finish(self) -> memoryview[int]:
        """The buffer. Nothing may be put into it afterwards."""
        return self._view

    def _allocate(self, dim: int) -> None:
        self.dim = dim
        self._bytes = bytearray(self.count * dim * _FLOAT_BYTES)
        self._view = memoryview(self._bytes)

    def _copy_row(self, source: int, target: int) -> None:
        size = self.dim * _FLOAT_BYTES
        view = self._view
        vector = view[source * size : (source + 1) * size]
        view[target * size : (target + 1) * size] = vector
        if self._on_vectors is not None:
            self._on_vectors([target], _table(vector, self.dim))


def _table(data: memoryview[int], dim: int) -> memoryview[float]:
    return data.toreadonly().cast("f", (len(data) // (dim * _FLOAT_BYTES), dim))
