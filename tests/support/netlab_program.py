"""A program that runs in a lab: what it prints, how it ends, and how it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class LabError(AssertionError):
    """The lab, or a program in it, did not do what the test relies on."""


class Done(NamedTuple):
    """How a program ended. Killed by a signal, its code is minus the signal's number."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(eq=False)
class Program:
    """A program under way, started by `start`. What it prints is always read, so it never waits."""

    _process: asyncio.subprocess.Process
    _lines: list[str] = field(default_factory=list)
    _errors: list[str] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def start(cls, *command: str, env: dict[str, str]) -> Program:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            start_new_session=True,
            limit=1 << 24,  # bytes in a line
        )
        self = cls(process)
        for stream, lines in ((process.stdout, self._lines), (process.stderr, self._errors)):
            assert stream is not None
            self._readers.append(asyncio.create_task(self._read(stream, lines)))
        return self

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        async for line in stream:
            lines.append(line.decode("utf-8", "replace"))
            self._news.set()

    @property
    def url(self) -> str:
        """Where it listens, if it is a FakeOllama or another program that says so."""
        for line in self._lines:
            _, found, url = line.partition("listening on ")
            if found:
                return url.strip()
        raise LabError("it does not say where it listens")

    def stdout(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    def output(self) -> str:
        """What it has printed so far, to stdout and then to stderr."""
        return "".join((*self._lines, *self._errors))

    async def line_with(self, text: str, *, timeout: float = 20.0, after: int = 0) -> str:
        """The first line of stdout with that text, now or later; lines before `after` are skipped.

        Raises LabError when the program has ended, or the time is over.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    ended = all(reader.done() for reader in self._readers)
                    self._news.clear()
                    for line in self._lines[after:]:
                        if text in line:
                            return line.strip()
                    if ended:
                        raise LabError(f"it ended without saying {text!r}:\n{self.output()}")
                    news = asyncio.ensure_future(self._news.wait())
                    waiting = [reader for reader in self._readers if not reader.done()]
                    try:
                        await asyncio.wait([news, *waiting], return_when="FIRST_COMPLETED")
                    finally:
                        news.cancel()
        except TimeoutError:
            said = self.output()
            raise LabError(f"no line with {text!r} within {timeout:g} s:\n{said}") from None

    async def wait(self) -> Done:
        """How it ended, once it has. The caller brings the deadline."""
        await asyncio.wait(self._readers)
        code = await self._process.wait()
        return Done(code, "".join(self._lines), "".join(self._errors))

    async def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself."""
        for pid in await self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def end(self, timeout: float = 10.0) -> Done:
        """Ask it to end (SIGTERM), kill it when it does not, and wait. Idempotent."""
        if self._process.returncode is None:
            await self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                return await self.wait()
        except TimeoutError:
            await self.send(signal.SIGKILL)
            return await self.wait()

    async def kill(self) -> Done:
        """End it with no chance to clean up."""
        await self.send(signal.SIGKILL)
        return await self.wait()

    async def _pids(self) -> list[int]:
        # What we started is nsenter. It stays outside, and its only child is the program.
        pid = self._process.pid
        while self._process.returncode is None:
            if found := children_of(pid):
                return found
            await asyncio.sleep(0.001)  # it has not forked yet, or its child is over
        return []


def children_of(pid: int) -> list[int]:
    """The processes that a process has started. None when it is over."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []
