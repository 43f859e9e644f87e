"""``aiosollol up`` as a process, and requests to it. Its nodes are processes too, so that a test
cannot block itself."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from aiosollol.testing import FakeModel

DEADLINE = 120.0  # a hang fails; nothing is measured
PROGRAM = "from aiosollol.cli import gateway, main; raise SystemExit(main())"
MODELS = [FakeModel("all-minilm"), FakeModel("llama3.2", kind="chat")]


class Gateway:
    """A running gateway. lines: its output so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._heard = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._heard:
                self.lines.append(line.decode().rstrip())
                self._heard.notify_all()
        async with self._heard:
            self._heard.notify_all()

    async def said(self, text: str, *, times: int = 1) -> str:
        """Wait for `text` to be printed `times` times; returns the last line with it."""
        async with self._heard:
            while len(found := [line for line in self.lines if text in line]) < times:
                assert not self._reading.done(), self.lines
                await self._heard.wait()
        return found[times - 1]

    async def url(self) -> str:
        line = await self.said("Listening on ")
        return line.split()[2].rstrip(";")

    async def metrics_url(self) -> str:
        return (await self.said("Metrics: ")).split()[1]

    async def pids(self) -> list[int]:
        line = await self.said("processes: ")
        return [int(pid) for pid in line.split("processes: ")[1].split(")")[0].split(", ")]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    async def end(self) -> int:
        """Wait until it ends; returns its exit code."""
        await self._reading
        return await self.process.wait()


@asynccontextmanager
async def running(
    tmp_path: Path, *arguments: str, files: int | None = None, **environment: str
) -> AsyncIterator[Gateway]:
    """``aiosollol up`` on free ports. files: its limit of open files."""
    limit = (
        ""
        if files is None
        else f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({files}, {files})); "
    )
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-W",
            "error",
            "-c",
            limit + PROGRAM,
            "up",
            "--port=0",
            "--metrics-port=0",
        ),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), **environment},
        start_new_session=True,
    )
    gateway = Gateway(process)
    try:
        async with asyncio.timeout(DEADLINE):
            yield gateway
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await gateway.end()


async def embed(session: aiohttp.ClientSession, url: str, **headers: str) -> int:
    body = {"model": "all-minilm", "input": "a text"}
    async with session.post(f"{url}/api/embed", json=body, headers=headers) as answer:
        answered = await answer.json()
        assert answer.status != 200 or len(answered["embeddings"]) == 1
        return answer.status


async def text_of(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()
