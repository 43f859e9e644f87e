"""A program that runs in a lab: its output, its exit code, and signals to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class LabError(AssertionError):
    """The lab or a program in it failed."""


class Done(NamedTuple):
    """The result of a program. Killed by a signal, its code is minus the signal's number."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(eq=False)
class Program:
    """A running program, started by `start`. Its output is always read, so it never blocks."""

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
        """The URL it prints, if it is a FakeOllama or another program that prints one."""
        for line in self._lines:
            _, found, url = line.partition("listening on ")
            if found:
                return url.strip()
        raise LabError("it does not say where it listens")

    def stdout(self) -> str:
        """Its stdout so far."""
        return "".join(self._lines)

    def output(self) -> str:
        """Its stdout so far, followed by its stderr."""
        return "".join((*self._lines, *self._errors))

    async def line_with(self, text: str, *, timeout: float = 20.0, after: int = 0) -> str:
        """Wait for the first line of stdout with that text, skipping the first `after` lines.

        Raises LabError if the program ends first, or on a timeout.
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
        """Wait until it ends. The caller sets the deadline."""
        await asyncio.wait(self._readers)
        code = await self._process.wait()
        return Done(code, "".join(self._lines), "".join(self._errors))

    async def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself."""
        for pid in await self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def end(self, timeout: float = 10.0) -> Done:
        """Send SIGTERM, kill it if it does not end, and wait. Idempotent."""
        if self._process.returncode is None:
            await self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout):
                return await self.wait()
        except TimeoutError:
            await self.send(signal.SIGKILL)
            return await self.wait()

    async def kill(self) -> Done:
        """Kill it without a chance to clean up."""
        await self.send(signal.SIGKILL)
        return await self.wait()

    async def _pids(self) -> list[int]:
        # We started nsenter, which stays outside; its only child is the program.
        pid = self._process.pid
        while self._process.returncode is None:
            if found := children_of(pid):
                return found
            await asyncio.sleep(0.001)  # it has not forked yet, or its child is over
        return []


def children_of(pid: int) -> list[int]:
    """Child processes of a process; none if it has ended."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []
