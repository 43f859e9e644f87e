"""`VectorWriter`: vectors become text while others are still computed."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.gateway.bodies import VectorWriter
from aiosollol.wire.ollama.server_responses import Floats, json_vectors

pytestmark = pytest.mark.anyio


def table(rows: Sequence[int]) -> memoryview[float]:
    """A vector (row, -row) for each of `rows`."""
    flat = array("f", [number for row in rows for number in (row, -row)])
    return memoryview(flat).cast("B").cast("f", (len(rows), 2))


@given(st.permutations(range(200)), st.integers(1, 200))
def test_all_are_written_in_order_however_they_come(rows: list[int], size: int) -> None:
    async def write() -> list[bytes]:
        with VectorWriter(len(rows), json_vectors) as writer:
            for at in range(0, len(rows), size):
                some = rows[at : at + size]
                writer.add(some, table(some))
                if at % 3:
                    await asyncio.sleep(0)
            return await writer.finish()

    written = asyncio.run(write())
    assert [orjson.loads(each) for each in written] == [[row, -row] for row in range(200)]


class Turns:
    """How many vectors are written in each turn of the loop."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def write(self, floats: Floats, dim: int) -> list[bytes]:
        found = json_vectors(floats, dim)
        self.sizes.append(len(found))
        return found


async def test_a_large_chunk_takes_several_turns_and_begins_before_it_is_asked_for() -> None:
    turns, rows = Turns(), range(200)
    with VectorWriter(200, turns.write) as writer:
        writer.add(rows, table(rows))
        assert turns.sizes == []
        for written in (1, 2, 3, 4):
            await asyncio.sleep(0)
            assert len(turns.sizes) == written
        assert turns.sizes == [64, 64, 64, 8]
        assert len(await writer.finish()) == 200
    assert turns.sizes == [64, 64, 64, 8]


async def test_nothing_is_written_after_it_is_left() -> None:
    turns, rows = Turns(), range(200)
    with VectorWriter(200, turns.write) as writer:
        writer.add(rows, table(rows))
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert turns.sizes == [64]
