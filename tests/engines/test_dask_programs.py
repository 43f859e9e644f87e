"""Programs that use Dask, as processes: without a guard, killed, and in odd environments."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from dask_parts import MODEL, NAME, PATIENCE, need, scheduler

need("distributed")

from aiosollol.testing import FakeOllama  # noqa: E402 (what follows `need`)

pytestmark = pytest.mark.anyio

# No `if __name__ == "__main__":` on purpose.
PROGRAM = f"""
import asyncio, sys
from aiosollol import OllamaPool  # noqa: E402

async def main():
    url, address, count = sys.argv[1:]
    async with OllamaPool([url], enable_dask=True, dask_address=address or None,
                          dask_workers=1) as pool:
        texts = [f"passage {{index}}" for index in range(int(count))]
        print(len(await pool.embed_batch({NAME!r}, texts, engine="dask")), flush=True)

asyncio.run(main())
"""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def program(
    tmp_path: pathlib.Path, *arguments: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    path = tmp_path / "program.py"
    await asyncio.to_thread(path.write_text, PROGRAM, "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "default", str(path), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_a_program_without_a_guard_and_with_odd_variables(tmp_path: pathlib.Path) -> None:
    async with (
        FakeOllama(models=[MODEL]) as node,
        program(
            tmp_path,
            *(node.url, "", "500"),
            OLLAMA_HOST="10.255.255.1",
            SOLLOL_TRUSTED="10.255.255.1",
            DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD="spawn",
        ) as process,
    ):
        out, problems = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert (process.returncode, out.decode()) == (0, "500\n"), problems.decode()
        assert not problems, problems.decode()
        assert node.items == 500


async def test_a_program_that_is_killed_leaves_no_work_behind(tmp_path: pathlib.Path) -> None:
    async with FakeOllama(models=[MODEL], seconds_per_item=0.001) as node, scheduler(2) as address:
        async with program(tmp_path, node.url, address, "100000") as process:
            await until(lambda: node.items > 200)
            node.seconds_per_item = 1000.0
            await until(lambda: node.in_flight)
            process.send_signal(signal.SIGKILL)
            await process.communicate()
        # Dask forgets what nobody wants any more, and the workers end it.
        await until(lambda: node.in_flight == 0)
        node.seconds_per_item = 0.0
        requests = node.requests
        async with program(tmp_path, node.url, address, "100") as process:
            out, problems = await asyncio.wait_for(process.communicate(), PATIENCE)
            assert out.decode() == "100\n", problems.decode()
        assert node.items <= 100_000
        assert node.requests - requests < 20


async def test_a_program_that_is_killed_takes_its_own_cluster_along(
    tmp_path: pathlib.Path,
) -> None:
    async with FakeOllama(models=[MODEL], seconds_per_item=1000.0) as node:
        async with program(tmp_path, node.url, "", "1000") as process:
            await until(lambda: node.in_flight)
            process.send_signal(signal.SIGKILL)
            await process.communicate()
        await until(lambda: node.in_flight == 0)


async def test_ctrl_c_ends_a_program_and_its_cluster(tmp_path: pathlib.Path) -> None:
    async with FakeOllama(models=[MODEL], seconds_per_item=1000.0) as node:
        async with program(tmp_path, node.url, "", "1000") as process:
            await until(lambda: node.in_flight)
            process.send_signal(signal.SIGINT)
            _, problems = await asyncio.wait_for(process.communicate(), PATIENCE)
            assert process.returncode not in (0, None)
            assert "KeyboardInterrupt" in problems.decode()
            assert "never retrieved" not in problems.decode()
        await until(lambda: node.in_flight == 0)
