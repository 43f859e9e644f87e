"""The examples of Dask and Ray, run as their reader runs them."""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from dask_parts import need
from ray_parts import PATIENCE, ray_place

need("distributed", "pandas", "pyarrow", "ray")

from aiosollol.testing import FakeModel, FakeOllamaProcess  # noqa: E402 (what follows `need`)

pytestmark = pytest.mark.anyio

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
MODEL = FakeModel("nomic-embed-text", dim=8)
LINE = re.compile(r" *(\d+) vectors/s, (alone|\d+ programs), may have \{(?:'.*': (\d+))?\}\n")


@asynccontextmanager
async def started(
    name: str, *arguments: str, environment: dict[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / name), *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def lines_until(
    process: asyncio.subprocess.Process, state: str, slots: int
) -> list[tuple[int, str, int]]:
    """What an example of Ray prints until it says this."""
    assert process.stdout is not None
    found = []
    async with asyncio.timeout(PATIENCE):
        while not found or found[-1][1:] != (state, slots):
            line = (await process.stdout.readline()).decode()
            parts = LINE.fullmatch(line)
            assert parts is not None, f"{line!r} after {found}"
            found.append((int(parts[1]), parts[2], int(parts[3] or 0)))
    return found


async def test_the_batch_on_dask() -> None:
    async with (
        FakeOllamaProcess(models=[MODEL]) as node,
        started("dask_batch.py", node.url, environment=dict(os.environ)) as process,
    ):
        async with asyncio.timeout(PATIENCE):
            out, _ = await process.communicate()
    assert process.returncode == 0
    batch, written, files = out.decode().splitlines()
    assert batch.startswith("2000 items in ")
    assert batch.endswith("(dask, 2 workers)")
    assert written.startswith("2000 rows in ")
    assert files == str([f"part-{index:05d}.parquet" for index in range(4)])


async def test_two_programs_that_share_by_ray() -> None:
    with ray_place() as place:
        environment = {**os.environ, **place.environment}
        async with (
            FakeOllamaProcess(models=[MODEL], seconds_per_item=0.02, slots=4) as node,
            started(
                *("ray_sharing.py", "--name", "search", "--weight", "3", "--seconds", "300"),
                node.url,
                environment=environment,
            ) as search,
        ):
            alone = await lines_until(search, "1 programs", 4)
            async with started(
                *("ray_sharing.py", "--name", "import", "--seconds", "300", node.url),
                environment=environment,
            ) as other:
                await lines_until(other, "2 programs", 1)
                shared = await lines_until(search, "2 programs", 3)
                other.send_signal(signal.SIGINT)
                async with asyncio.timeout(PATIENCE):
                    await other.communicate()
            again = await lines_until(search, "1 programs", 4)
            assert any(vectors for vectors, _, _ in alone + shared + again)
            search.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE):
                await search.communicate()
        assert place.processes() == []
