"""`AutoBatch` against ``kill -9``: nothing that was acknowledged is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import project_paths
import pytest

from aiosollol.autobatch import AutoBatch
from aiosollol.testing import FakeModel, FakeOllama, fake_vector

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="its program forks"),
]

EMBED = FakeModel("nomic-embed-text", dim=16)
MODEL = "nomic-embed-text"
PROGRAM = str(project_paths.SUPPORT / "autobatch_program.py")
DEADLINE = 120.0  # a hang fails; nothing is measured


class Victims:
    """Starts processes of the program, and kills them."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        self._pid = 0

    async def start(self, what: str) -> None:
        self._stdin.write(f"{what}\n".encode())
        first = await self.line()
        assert first.startswith("started "), first
        self._pid = int(first.split()[1])

    async def line(self) -> str:
        return (await self._stdout.readline()).decode().strip()

    async def kill(self) -> list[str]:
        """Kill the one that was started last; what it had still said."""
        os.kill(self._pid, signal.SIGKILL)
        said = []
        while (line := await self.line()) != "ended":
            assert line, "the program ended"
            said.append(line)
        return said


@asynccontextmanager
async def victims(path: str, *urls: str) -> AsyncIterator[Victims]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", PROGRAM, path, *urls),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(DEADLINE):
            yield Victims(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it and those that it started
        await process.communicate()


@pytest.mark.parametrize(("documents", "kills"), [(2_000, 3), (10_000, 20)])
async def test_a_worker_that_is_killed_loses_nothing(
    tmp_path: Path, documents: int, kills: int
) -> None:
    path, random = str(tmp_path / "queue.db"), Random(documents)
    texts = [f"document {at} of many" for at in range(documents)]
    async with (
        FakeOllama(models=[EMBED], overhead=0.002) as one,
        FakeOllama(models=[EMBED], overhead=0.002) as two,
        victims(path, one.url, two.url) as workers,
        AutoBatch(None, path) as queue,
    ):
        job = await queue.submit(texts, MODEL)
        settled = 0
        for _ in range(kills):
            await workers.start("embed")
            # It tells of a batch before it writes it down, which takes some turns of our loop: so
            # the kill comes before, during or after that.
            for _ in range(random.randint(1, documents // 100 // (2 * kills))):
                assert await workers.line() == "embedded"
            for _ in range(random.randrange(20)):
                await asyncio.sleep(0)
            await workers.kill()
            status = await queue.status(job)
            assert status.completed >= settled  # what was settled stays settled
            assert status.completed + status.queued == documents
            settled = status.completed
        assert 0 < settled < documents
        await workers.start("embed")
        assert (await queue.wait(job)).state == "completed"
        found: dict[int, bytes] = {}
        async for page in queue.results(job):
            assert not page.errors
            assert not found.keys() & set(page.indices)
            found |= {at: row.tobytes() for at, row in zip(page.indices, page.vectors, strict=True)}
        assert found == {
            at: bytes(fake_vector(EMBED.digest, text, EMBED.dim)) for at, text in enumerate(texts)
        }
    with contextlib.closing(sqlite3.connect(path)) as rows:
        counting = "SELECT (SELECT count(*) FROM vectors), (SELECT count(*) FROM documents)"
        assert rows.execute(counting).fetchone() == (documents, 0)
        assert rows.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path, random = str(tmp_path / "queue.db"), Random(1)
    acknowledged: list[str] = []
    async with victims(path) as submitters:
        for _ in range(5):
            await submitters.start("submit")
            acknowledged += [await submitters.line() for _ in range(random.randint(1, 30))]
            acknowledged += await submitters.kill()
    async with AutoBatch(None, path) as queue:
        for job in acknowledged:
            status = await queue.status(job)
            assert (status.total, status.queued) == (10, 10)
        everything = await queue.status()
        # The one job under way at a kill may be there without being acknowledged, but whole.
        assert 0 <= everything.job_count - len(acknowledged) <= 5
        assert everything.queued == 10 * everything.job_count
