"""The example of Ray, run as its reader runs it: two programs that share a node by weight."""

from __future__ import annotations

import asyncio
import pathlib
import re

import pytest
from dask_parts import need
from ray_parts import PATIENCE, Program, program, ray_place

need("ray")

from aiosollol.testing import FakeModel, FakeOllamaProcess  # noqa: E402 (what follows `need`)

pytestmark = pytest.mark.anyio

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "ray_sharing.py"
MODEL = FakeModel("nomic-embed-text", dim=8)
LINE = re.compile(r" *(\d+) vectors/s, (alone|\d+ programs), may have \{(?:'.*': (\d+))?\}\n")


async def vectors_until(example: Program, state: str, slots: int) -> int:
    """How many vectors it tells of until it says this."""
    vectors = 0
    async with asyncio.timeout(PATIENCE):
        while True:
            line = await example.line()
            parts = LINE.fullmatch(line)
            assert parts is not None, line
            vectors += int(parts[1])
            if (parts[2], int(parts[3] or 0)) == (state, slots):
                return vectors


async def test_two_programs_share_a_node_by_weight_until_one_ends() -> None:
    with ray_place() as place:
        async with (
            FakeOllamaProcess(models=[MODEL], seconds_per_item=0.02, slots=4) as node,
            program(
                *(place, "--name", "search", "--weight", "3", "--seconds", "300", node.url),
                file=EXAMPLE,
            ) as search,
        ):
            vectors = await vectors_until(search, "1 programs", 4)
            async with program(
                *(place, "--name", "import", "--seconds", "300", node.url), file=EXAMPLE
            ) as other:
                await vectors_until(other, "2 programs", 1)
                vectors += await vectors_until(search, "2 programs", 3)
                await other.interrupt()
            vectors += await vectors_until(search, "1 programs", 4)
            assert vectors
            await search.interrupt()
        assert place.processes() == []
