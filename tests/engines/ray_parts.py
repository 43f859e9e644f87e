"""Real Ray for tests: a cluster on loopback, and programs of their own that use it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

PROGRAM = pathlib.Path(__file__).with_name("ray_program.py")
PATIENCE = 90.0
_MARK = "AIOSOLLOL_TEST_RAY"


class RayPlace:
    """A home and a folder for Ray of their own, so that nobody else's cluster is found.

    Every process that is started with `environment` can be found by it, whatever becomes of it.
    """

    def __init__(self) -> None:
        # Short: Ray has sockets in there, whose paths must not be longer than 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="ry", dir="/tmp")
        self.environment = {
            **os.environ,
            "HOME": self.folder,
            "RAY_TMPDIR": self.folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on loopback only
            "SOLLOL_AUTO_DISCOVER": "false",
            _MARK: self.folder,
        }

    def processes(self, title: str = "") -> list[int]:
        """The processes that were started in this place, those whose command line has `title`."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if self._owns(entry) and title.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def _owns(self, process: pathlib.Path) -> bool:
        if f"{_MARK}={self.folder}\0".encode() in (process / "environ").read_bytes():
            return True
        # Ray gives its processes titles, written over their environment; but they have logs.
        return any(
            os.readlink(opened).startswith(f"{self.folder}/")
            for opened in (process / "fd").iterdir()
        )

    def kill(self, title: str = "") -> int:
        """End those processes as ``kill -9`` does; how many there were."""
        pids = self.processes(title)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def kill_one(self, pid: int) -> None:
        """The same for one, which must be of this place."""
        assert pid in self.processes()
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing behind, however the test ended."""
        while self.kill():
            pass
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def ray_place() -> Iterator[RayPlace]:
    place = RayPlace()
    try:
        yield place
    finally:
        place.close()


@asynccontextmanager
async def ray_head(place: RayPlace, port: int | None = None) -> AsyncIterator[str]:
    """A cluster by ``ray start --head``, at 127.0.0.1; its address. Killed at the end."""
    chosen = port or free_port()
    ray = pathlib.Path(sys.executable).with_name("ray")
    process = await asyncio.create_subprocess_exec(
        str(ray),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={chosen}",
        "--include-dashboard=false",
        "--num-cpus=2",
        "--disable-usage-stats",
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    current = pathlib.Path(place.folder, "ray", "ray_current_cluster")
    try:
        async with asyncio.timeout(PATIENCE):
            while not (listens(chosen) and await asyncio.to_thread(current.exists)):
                assert process.returncode is None, "ray start has ended"
                await asyncio.sleep(0.1)
        yield f"127.0.0.1:{chosen}"
    finally:
        end_cluster(place)
        await process.wait()


def end_cluster(place: RayPlace) -> None:
    """End every process of a cluster at once, and none of those that use it."""
    for title in ("gcs_server", "raylet", "ray::", "/ray/", "--head"):
        place.kill(title)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """A program that says lines, of JSON if it is `PROGRAM`, and is told lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def line(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        assert line, "the program has ended; what it said is in stderr"
        return line.decode()

    async def said(self) -> dict[str, Any]:
        """The next line, read."""
        said: dict[str, Any] = json.loads(await self.line())
        return said

    async def ask(self) -> dict[str, Any]:
        """What it says to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"well?\n")
        return await self.said()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def interrupt(self) -> None:
        """Let it end as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            await self._process.communicate()

    async def end(self) -> None:
        """Let it end as programs do."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await self._process.wait()


@asynccontextmanager
async def program(
    place: RayPlace, *arguments: str, file: pathlib.Path = PROGRAM
) -> AsyncIterator[Program]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(file),
        *arguments,
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    started = Program(process)
    try:
        yield started
    finally:
        started.kill()
        await process.wait()
        assert process.stdout is not None
        await process.stdout.read()
