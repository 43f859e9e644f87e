"""`Embeddings`: the vectors of a batch, in one contiguous float32 buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from aiosollol.errors import SollolError

if TYPE_CHECKING:
    import numpy
    from typing_extensions import Buffer

    from aiosollol.core.report import BatchReport

Vector: TypeAlias = "memoryview[float]"
"""One vector: a read-only view of float32. It has len, indexing, iteration and ``tolist()``;
``numpy.asarray(vector)`` shares its memory."""


class Embeddings(Sequence[Vector]):
    """Vectors in input order: shape (n, dim), float32, row after row in one buffer.

    A sequence of `Vector`; slicing gives `Embeddings` over the same memory (a step other than 1
    copies). ``numpy.asarray(embeddings)`` is an array of shape (n, dim) without a copy; numpy is
    not needed otherwise.

    dim: length of each vector; 0 if there are no vectors.
    errors: errors by item index, for the items without a vector, whose rows are NaN.
    report: the report of the batch that made the vectors; None if there is none.
    """

    __slots__ = ("_count", "_floats", "dim", "errors", "report")

    def __init__(
        self,
        buffer: Buffer,
        dim: int,
        *,
        errors: Mapping[int, SollolError] | None = None,
        report: BatchReport | None = None,
        count: int | None = None,
    ) -> None:
        """A view of `buffer`: ``count * dim`` float32 in native byte order.

        `count` is needed only if `dim` is 0. Raises ValueError if the sizes do not match.
        """
        floats = memoryview(buffer).toreadonly().cast("B").cast("f")
        if count is None:
            count = len(floats) // dim if dim else 0
        if count * dim != len(floats):
            raise ValueError(f"{len(floats)} floats are not {count} vectors of {dim}")
        self._floats = floats
        self._count = count  # not derived: rows of length 0 are still rows
        self.dim = dim
        self.errors: dict[int, SollolError] = dict(errors or {})
        self.report = report

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Vector: ...
    @overload
    def __getitem__(self, index: slice) -> Embeddings: ...
    def __getitem__(self, index: int | slice) -> Vector | Embeddings:
        if isinstance(index, slice):
            return self._slice(index)
        count = len(self)
        position = index + count if index < 0 else index
        if not 0 <= position < count:
            raise IndexError(f"item {index} of {count} vectors")
        return self._floats[position * self.dim : (position + 1) * self.dim]

    def _slice(self, index: slice) -> Embeddings:
        picked = range(len(self))[index]
        errors = {new: self.errors[old] for new, old in enumerate(picked) if old in self.errors}
        floats = self._floats
        part: Buffer
        if picked.step == 1:
            part = floats[picked.start * self.dim : picked.stop * self.dim]
        else:
            part = b"".join(bytes(self[old]) for old in picked)
        return Embeddings(part, self.dim, errors=errors, report=self.report, count=len(picked))

    def __iter__(self) -> Iterator[Vector]:
        floats, dim = self._floats, self.dim
        return (floats[row * dim : (row + 1) * dim] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Embeddings):
            return NotImplemented
        # Compare bytes, not floats: a missing row is NaN, which is unequal to itself.
        same_shape = self.dim == other.dim and len(self) == len(other)
        return same_shape and self._floats.cast("B") == other._floats.cast("B")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.tobytes(), self.dim, self.errors, self.report, len(self))

    def __repr__(self) -> str:
        missing = f", {len(self.errors)} missing" if self.errors else ""
        return f"<Embeddings {len(self)} x {self.dim} float32{missing}>"

    @property
    def buffer(self) -> memoryview[float]:
        """All floats, flat and read-only: item `i` is ``buffer[i * dim:(i + 1) * dim]``."""
        return self._floats

    def tobytes(self) -> bytes:
        """The raw float32 data, ``len(self) * dim * 4`` bytes."""
        return self._floats.tobytes()

    def tolist(self) -> list[list[float]]:
        """The vectors as lists of Python floats."""
        floats: list[float] = list(self._floats)
        dim = self.dim
        return [floats[row * dim : (row + 1) * dim] for row in range(len(self))]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> numpy.ndarray[Any, Any]:
        # Only numpy calls this, so it is installed.
        import numpy

        array = numpy.ndarray((len(self), self.dim), dtype=numpy.float32, buffer=self._floats)  # type: ignore[arg-type]
        if dtype is not None and array.dtype != numpy.dtype(dtype):
            if copy is False:
                raise ValueError(f"float32 vectors cannot become {dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array


def _rebuild(
    data: bytes,
    dim: int,
    errors: Mapping[int, SollolError],
    report: BatchReport | None,
    count: int,
) -> Embeddings:
    return Embeddings(data, dim, errors=errors, report=report, count=count)
