"""`VectorBuffer`: vectors land at their rows, in whatever order they come."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.request import unique_texts
from aiosollol.core.scheduling.vector_buffer import VectorBuffer


def view(*numbers: float) -> memoryview[float]:
    return memoryview(array("f", numbers))


def rows(buffer: VectorBuffer) -> list[list[float]]:
    floats = array("f", buffer.finish().tobytes())
    dim = buffer.dim
    return [floats[row * dim : (row + 1) * dim].tolist() for row in range(buffer.count)]


def test_vectors_land_at_their_rows() -> None:
    buffer = VectorBuffer(3, [0, 1, 2])
    buffer.put([2, 0], view(5.0, 6.0, 1.0, 2.0), 2)
    buffer.put([1], view(3.0, 4.0), 2)
    assert buffer.dim == 2
    assert rows(buffer) == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_a_text_that_repeats_lands_at_each_of_its_rows() -> None:
    buffer = VectorBuffer(4, [0, 2], {0: [1, 3]})
    buffer.put([1, 0], view(2.0, 1.0), 1)
    assert rows(buffer) == [[1.0], [1.0], [2.0], [1.0]]
    assert (buffer.rows_of(0), buffer.rows_of(1)) == ([0, 1, 3], [2])


def test_a_row_without_a_vector_is_nan() -> None:
    buffer = VectorBuffer(2, [0, 1])
    buffer.put([0], view(1.0, 2.0), 2)
    buffer.clear_row(1)
    first, second = rows(buffer)
    assert first == [1.0, 2.0]
    assert all(map(math.isnan, second))


def test_without_any_vector_it_is_empty() -> None:
    buffer = VectorBuffer(2, [0, 1])
    buffer.clear_row(0)
    assert (buffer.dim, len(buffer.finish())) == (0, 0)


def test_a_vector_of_another_length_is_refused_and_changes_nothing() -> None:
    buffer = VectorBuffer(2, [0, 1])
    buffer.put([0], view(1.0, 2.0), 2)
    with pytest.raises(ValueError, match="expected vectors of 2 dimensions, got 3"):
        buffer.put([0], view(7.0, 8.0, 9.0), 3)
    assert rows(buffer) == [[1.0, 2.0], [0.0, 0.0]]


def test_the_same_vector_may_come_twice() -> None:
    # A slow chunk is handed out a second time, and both answers may arrive.
    buffer = VectorBuffer(1, [0])
    buffer.put([0], view(1.0), 1)
    buffer.put([0], view(1.0), 1)
    assert rows(buffer) == [[1.0]]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.integers(1, 3), st.data())
def test_in_any_order_and_any_chunks(texts: list[str], dim: int, data: st.DataObject) -> None:
    unique = unique_texts(texts, {})
    buffer = VectorBuffer(len(texts), unique.places, unique.repeats)
    left = data.draw(st.permutations(range(len(unique.texts))))
    while left:
        size = data.draw(st.integers(1, len(left)))
        chunk, left = left[:size], left[size:]
        numbers = [float(ord(unique.texts[entry])) for entry in chunk for _ in range(dim)]
        buffer.put(chunk, view(*numbers), dim)
    assert rows(buffer) == [[float(ord(text))] * dim for text in texts]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12), st.data())
def test_each_row_is_told_of_with_its_vector(texts: list[str], data: st.DataObject) -> None:
    unique = unique_texts(texts, {})
    told: dict[int, list[float]] = {}

    def tell(rows: Sequence[int], vectors: memoryview[float]) -> None:
        assert vectors.readonly
        assert vectors.shape == (len(rows), 2)
        told.update(zip(rows, vectors.tolist(), strict=True))

    buffer = VectorBuffer(len(texts), unique.places, unique.repeats, tell)
    entries = data.draw(st.permutations(range(len(unique.texts))))
    at = data.draw(st.integers(0, len(entries)))
    for some in (entries[:at], entries[at:]):
        if some:
            numbers = [float(ord(unique.texts[entry]) + plus) for entry in some for plus in (0, 1)]
            buffer.put(some, view(*numbers), 2)
    assert [told[row] for row in range(len(texts))] == rows(buffer)
    assert rows(buffer) == [[float(ord(text)), float(ord(text)) + 1] for text in texts]


@pytest.mark.parametrize(
    ("repeats", "calls"),
    [
        ([], 0),
        ([1], 1),
        (list(range(1, 257)), 1),
        (list(range(1, 258)), 2),
        (list(range(1, 1000)), 4),
        ([1, 2, 4, 5, 9], 3),
        (list(range(1, 999, 2)), 499),
    ],
)
def test_equal_texts_are_copied_in_runs(repeats: list[int], calls: int) -> None:
    seen: list[tuple[int, tuple[float, ...]]] = []
    told: list[int] = []

    def on_vectors(rows: Sequence[int], vectors: memoryview[float]) -> None:
        told.append(len(rows))
        seen.extend((row, tuple(vectors.tolist()[at])) for at, row in enumerate(rows))

    buffer = VectorBuffer(1000, [0], {0: repeats}, on_vectors)
    buffer.put([0], memoryview(array("f", [1.5, -2.0])), 2)
    assert len(told) == 1 + calls
    assert seen == [(row, (1.5, -2.0)) for row in [0, *repeats]]
    whole = buffer.finish().cast("B").cast("f", (1000, 2)).tolist()
    assert [row for row in range(1000) if whole[row] == [1.5, -2.0]] == [0, *repeats]
