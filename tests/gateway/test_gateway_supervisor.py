"""`Supervisor`: processes that are started, restarted and ended."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from listener_server import DEADLINE

from aiosollol import SollolError
from aiosollol.gateway.serving.listener import Signals
from aiosollol.gateway.serving.supervisor import Supervisor

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, scope="module")
def many_files() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# Says so when it serves, notes its signals in a file, and ends at SIGTERM or with its parent.
CHILD = """
import os, signal, sys
name = sys.stdin.readline().strip()
note = open(name, "a", buffering=1)
signal.signal(signal.SIGHUP, lambda *_: note.write("hup\\n"))
signal.signal(signal.SIGTERM, lambda *_: (note.write("term\\n"), os._exit(0)))
note.write(f"began {os.getpid()}\\n")
os.write(1, b"ready\\n")
while os.read(0, 100): pass
note.write("orphan\\n")
"""


class Team:
    def __init__(self, folder: Path, source: str = CHILD, count: int = 2) -> None:
        self.files = [folder / f"{index}.txt" for index in range(count)]
        self.ready = asyncio.Event()
        self.signals = Signals(lambda: None)
        self.supervisor = Supervisor(
            (sys.executable, "-S", "-c", source),
            count,
            lambda index: str(self.files[index]).encode(),
            patience=1.0,
        )

    def said(self, index: int) -> list[str]:
        file = self.files[index]
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


@asynccontextmanager
async def working(team: Team) -> AsyncIterator[asyncio.Task[None]]:
    running = asyncio.create_task(team.supervisor.run(team.signals, team.ready.set))
    try:
        async with asyncio.timeout(DEADLINE):
            ready = asyncio.create_task(team.ready.wait())
            await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            yield running
    finally:
        team.signals.end()
        await asyncio.wait([running])


async def test_processes_begin_hear_and_end(tmp_path: Path) -> None:
    team = Team(tmp_path)
    async with working(team) as running:
        assert all(team.supervisor.pids)
        team.supervisor.reload()
        while not all(team.said(index) == ["began", "hup"] for index in range(2)):
            await asyncio.sleep(0.01)
    assert [team.said(index) for index in range(2)] == [["began", "hup", "term"]] * 2
    running.result()


async def test_a_process_that_dies_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    team = Team(tmp_path)
    with caplog.at_level(logging.WARNING, "aiosollol"):
        async with working(team):
            first, other = team.supervisor.pids
            assert first is not None
            os.kill(first, signal.SIGKILL)
            while team.supervisor.pids[0] in (None, first):
                await asyncio.sleep(0.01)
            assert team.supervisor.pids[1] == other
    assert team.said(0) == ["began", "began", "term"]
    assert "process 0 ended with SIGKILL; restarting it in 0.1 s" in caplog.text


async def test_a_process_that_never_serves_ends_all(tmp_path: Path) -> None:
    team = Team(tmp_path, "raise SystemExit(3)")
    async with working(team) as running:
        with pytest.raises(SollolError, match=r"process \d ended with code 3"):
            await running
    assert team.supervisor.pids == [None, None]


async def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    stubborn = CHILD.replace(", os._exit(0)", "")
    team = Team(tmp_path, stubborn, count=1)
    team.supervisor._patience = -4.9  # a tenth of a second in all
    async with working(team) as running:
        pass
    running.result()
    assert team.said(0) == ["began", "term"]


async def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Their stdin is held by it, and the system closes that however it dies."""
    note = tmp_path / "0.txt"
    parent = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", {CHILD!r}], stdin=subprocess.PIPE)
child.stdin.write({str(note)!r}.encode() + b"\\n")
child.stdin.flush()
sys.stdin.read()
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-c", parent),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(DEADLINE):
        while not note.exists() or "began" not in note.read_text():
            await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        while "orphan" not in note.read_text():
            await asyncio.sleep(0.01)
