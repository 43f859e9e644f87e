"""`Embeddings`: rows of float32 that need no numpy, and share their memory with it."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.report import BatchReport
from aiosollol.errors import RunnerFailed, SollolError

ROWS = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]
NAN = float("nan")


def of(rows: list[list[float]], errors: dict[int, SollolError] | None = None) -> Embeddings:
    floats = array("f", [number for row in rows for number in row])
    return Embeddings(floats, len(rows[0]) if rows else 0, errors=errors, count=len(rows))


def test_a_sequence_of_vectors() -> None:
    vectors = of(ROWS)
    assert (len(vectors), vectors.dim) == (4, 3)
    assert vectors.tolist() == ROWS
    assert [vector.tolist() for vector in vectors] == ROWS
    assert [vector.tolist() for vector in reversed(vectors)] == ROWS[::-1]
    assert vectors[1] in vectors
    assert vectors.index(vectors[2]) == 2
    assert repr(vectors) == "<Embeddings 4 x 3 float32>"


@pytest.mark.parametrize("index", range(-4, 4))
def test_an_index_may_be_negative(index: int) -> None:
    assert of(ROWS)[index].tolist() == ROWS[index]


@pytest.mark.parametrize("index", [4, -5, 100])
def test_an_index_beyond_the_end(index: int) -> None:
    with pytest.raises(IndexError, match=f"{index} of 4 vectors"):
        of(ROWS)[index]


bounds = st.none() | st.integers(-6, 6)


@settings(deadline=None)
@given(bounds, bounds, bounds.filter(lambda step: step != 0), st.sets(st.integers(0, 3)))
def test_a_slice_is_that_of_a_list(
    start: int | None, stop: int | None, step: int | None, missing: set[int]
) -> None:
    picked = slice(start, stop, step)
    errors: list[SollolError | None] = [
        RunnerFailed("n", 500, str(row)) if row in missing else None for row in range(4)
    ]
    vectors = of(ROWS, {row: error for row, error in enumerate(errors) if error})
    part = vectors[picked]
    assert part.tolist() == ROWS[picked]
    assert [part.errors.get(row) for row in range(len(part))] == errors[picked]
    assert part.dim == 3


def test_a_slice_of_a_slice_shares_the_memory() -> None:
    floats = array("f", [0.0] * 12)
    part = Embeddings(floats, 3)[1:][1:3]
    floats[6] = 7.0
    assert part.tolist() == [[7.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_slice_keeps_the_report() -> None:
    report = BatchReport(4, 4, 1.0)
    vectors = Embeddings(array("f", range(4)), 1, report=report)
    assert vectors[1:].report is vectors[::2].report is report


@pytest.mark.parametrize(
    "vectors",
    [of([]), of(ROWS)[2:2], of(ROWS)[3:1], Embeddings(b"", 0), Embeddings(b"", 3)],
    ids=["of nothing", "an empty slice", "a backward slice", "no bytes", "no bytes of 3"],
)
def test_no_vectors(vectors: Embeddings) -> None:
    assert (len(vectors), list(vectors), vectors.tolist()) == (0, [], [])
    assert vectors[:].tolist() == vectors[::-1].tolist() == []
    assert vectors.tobytes() == b""
    with pytest.raises(IndexError):
        vectors[0]


def test_rows_without_a_dimension_are_still_rows() -> None:
    # When every item failed, nobody knows how long a vector is.
    error = RunnerFailed("n", 500, "out of memory")
    vectors = Embeddings(b"", 0, count=2, errors={0: error, 1: error})
    assert (len(vectors), vectors.dim, vectors.tolist()) == (2, 0, [[], []])
    assert (len(vectors[1:]), vectors[1:].errors) == (1, {0: error})
    assert (len(vectors[::-1]), len(vectors[-1])) == (2, 0)
    assert "2 missing" in repr(vectors)


def test_nothing_can_be_written() -> None:
    vectors = of(ROWS)
    with pytest.raises(TypeError):
        vectors[0][0] = 1.0
    with pytest.raises(TypeError):
        vectors[1:].buffer[0] = 1.0


@pytest.mark.parametrize(
    ("count_of_floats", "dim", "count"), [(5, 3, None), (6, 3, 1), (6, 0, None), (0, 3, 1)]
)
def test_a_buffer_of_another_size_is_refused(
    count_of_floats: int, dim: int, count: int | None
) -> None:
    with pytest.raises(ValueError, match=f"{count_of_floats} floats are not"):
        Embeddings(array("f", [0.0] * count_of_floats), dim, count=count)


def test_equal_are_equal_bytes() -> None:
    assert of(ROWS) == of(ROWS)
    assert of(ROWS) == of(ROWS[::-1])[::-1]
    assert of(ROWS) != of(ROWS[:3])
    assert of(ROWS) != ROWS
    assert of([[1.0, 2.0]]) != of([[1.0], [2.0]])
    with pytest.raises(TypeError):
        hash(of(ROWS))


def test_missing_rows_do_not_make_vectors_unequal_to_themselves() -> None:
    rows = [[1.0, 2.0], [NAN, NAN]]
    assert of(rows) == of(rows)
    assert of(rows) != of([[1.0, 2.0], [NAN, 0.0]])


def test_it_can_be_copied_and_pickled() -> None:
    error = RunnerFailed("n", 500, "out of memory")
    report = BatchReport(4, 4, 1.0)
    vectors = Embeddings(array("f", [1.0, NAN]), 1, errors={1: error}, report=report)
    for twin in (copy.copy(vectors), copy.deepcopy(vectors), pickle.loads(pickle.dumps(vectors))):
        assert twin == vectors
        assert twin.report == report
        assert str(twin.errors[1]) == str(error)
    assert len(pickle.loads(pickle.dumps(Embeddings(b"", 0, count=2)))) == 2


@settings(deadline=None)
@given(st.lists(st.floats(width=32), max_size=12))
def test_floats_come_out_to_the_last_bit(numbers: list[float]) -> None:
    vectors = Embeddings(array("f", numbers), 1)
    assert vectors.tobytes() == array("f", numbers).tobytes()
    for row, number in zip(vectors.tolist(), numbers, strict=True):
        assert row[0] == number or (math.isnan(row[0]) and math.isnan(number))


def test_numpy_is_not_needed() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from array import array\n"
        "from aiosollol.core.embeddings import Embeddings\n"
        "vectors = Embeddings(array('f', range(6)), 3)\n"
        "assert vectors[::-1].tolist() == [[3, 4, 5], [0, 1, 2]]\n"
        "assert vectors == vectors[:] and vectors[-1][0] == 3 and vectors.tobytes()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


class TestWithNumpy:
    def test_an_array_shares_the_memory(self) -> None:
        numpy = pytest.importorskip("numpy")
        floats = array("f", [0.0] * 6)
        vectors = Embeddings(floats, 3)
        matrix, row = numpy.asarray(vectors), numpy.asarray(vectors[1])
        assert (matrix.shape, matrix.dtype, row.shape) == ((2, 3), numpy.float32, (3,))
        floats[4] = 7.0
        assert (matrix[1, 1], row[1]) == (7.0, 7.0)
        assert numpy.shares_memory(matrix, numpy.asarray(vectors[1:]))
        assert not matrix.flags.writeable

    def test_a_copy_is_made_where_it_is_asked_for(self) -> None:
        numpy = pytest.importorskip("numpy")
        vectors = of(ROWS)
        copied = numpy.array(vectors)
        assert not numpy.shares_memory(copied, numpy.asarray(vectors))
        copied[0, 0] = 9.0
        assert vectors[0][0] == 0.0

    @pytest.mark.parametrize("dtype", ["float64", "float16", "int32"])
    def test_another_type_of_number(self, dtype: str) -> None:
        numpy = pytest.importorskip("numpy")
        matrix = numpy.asarray(of(ROWS), dtype=dtype)
        assert (matrix.dtype, matrix.tolist()) == (numpy.dtype(dtype), ROWS)

    def test_another_type_without_a_copy_is_impossible(self) -> None:
        pytest.importorskip("numpy")
        with pytest.raises(ValueError, match="without a copy"):
            of(ROWS).__array__("float64", copy=False)

    @pytest.mark.parametrize("part", [slice(1, 3), slice(None, None, -2), slice(0, 0)])
    def test_a_slice_has_the_shape_of_a_slice(self, part: slice) -> None:
        numpy = pytest.importorskip("numpy")
        vectors = of(ROWS)
        expected = numpy.asarray(vectors)[part]
        assert numpy.array_equal(numpy.asarray(vectors[part]), expected)
        assert numpy.asarray(vectors[part]).shape == expected.shape

    @pytest.mark.parametrize("count", [0, 2])
    def test_rows_without_a_dimension(self, count: int) -> None:
        numpy = pytest.importorskip("numpy")
        assert numpy.asarray(Embeddings(b"", 0, count=count)).shape == (count, 0)

    def test_from_an_array(self) -> None:
        numpy = pytest.importorskip("numpy")
        matrix = numpy.array(ROWS, dtype="float32")
        assert Embeddings(matrix, 3) == of(ROWS)
