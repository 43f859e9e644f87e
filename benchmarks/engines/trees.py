"""A program and all that it starts, as Linux tells of them: processor time, memory, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from benchmarks.gateway.processes import Failed, Process, family, read_stat

END_SECONDS = 20.0
"""Until a program that was told to end is ended."""
GONE_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_LAST_WORDS = 400
_LINE = 1 << 20
_CPU_CLOCK = 2  # of a whole process, all its threads: CPUCLOCK_SCHED in Linux
_SET_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_ROOT = Path(__file__).parents[2]
_TICK = 1 / os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What one process has used. own, children: seconds of processor time, of itself and of its
    children that ended. resident: bytes."""

    process: Process
    own: float
    children: float
    resident: int
    is_dead: bool


class Tree(NamedTuple):
    """What some processes have used together."""

    processes: frozenset[Process]
    cpu: float
    resident: int


def read_usage(text: str) -> Usage:
    """From ``/proc/PID/stat`` (proc(5))."""
    fields = text.rpartition(")")[2].split()  # from the third field on, counted from one
    own, children = (sum(map(int, fields[at : at + 2])) * _TICK for at in (11, 13))
    resident = int(fields[21]) * resource.getpagesize()
    return Usage(read_stat(text), own, children, resident, fields[0] in ("Z", "X"))


def tree_of(usages: Iterable[Usage], root: int) -> Tree:
    """Process `root` and its descendants. The dead count for what they used, not as processes."""
    by_process = {usage.process: usage for usage in usages}
    found = [by_process[each] for each in family(by_process, root)]
    alive = frozenset(usage.process for usage in found if not usage.is_dead)
    cpu = sum(usage.own + usage.children for usage in found)
    return Tree(alive, cpu, sum(usage.resident for usage in found))


def read_field(text: str, name: str) -> int:
    """Bytes, from a line such as ``Pss: 12 kB`` of a file of /proc."""
    line = next(line for line in text.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Have the orphans among the descendants of this process, to end and to bury them."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Program:
    """A program that answers lines of JSON with lines of JSON, as a context manager (Linux).

    What becomes a child of this process while it is entered counts as part of it: see `adopting`.

    home: a directory, where it runs and its log is written. peak: the most bytes that all its
    processes had resident together, in looks 0.2 s apart. left: how many of its processes were
    still there 3 s after it had ended, and had to be killed.
    """

    def __init__(self, command: Sequence[str], home: Path, env: Mapping[str, str]) -> None:
        self._command = command
        self._home = home
        self._env = {**env, "PYTHONPATH": str(_ROOT)}
        self._process: asyncio.subprocess.Process | None = None
        self._looking: asyncio.Task[None] | None = None
        self._others: frozenset[Process] = frozenset()
        self.began = 0.0
        self.peak = 0
        self.left = 0

    async def __aenter__(self) -> Program:
        self._others = _descendants(_usages())
        with (self._home / "log").open("wb") as log:
            self.began = time.monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=self._home,
                env=self._env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE,
                preexec_fn=_prepare,
            )
        self._looking = asyncio.create_task(self._keep_looking())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._looking is not None
        self._looking.cancel()
        await asyncio.wait([self._looking])
        ending = asyncio.create_task(self._end(is_asked=error is None))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # bounded; nobody else would end them
            raise

    async def answer(self, seconds: float, **order: Any) -> dict[str, Any]:
        """What it says next, to `order` if there is one. Raises Failed if it ends, or is late."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line, why = b"", "has ended"
        try:
            if order:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
            async with asyncio.timeout(seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            why = f"took longer than {seconds:g} s"
        except ConnectionError:
            pass  # it has ended
        if not line:
            words = (self._home / "log").read_text(errors="replace")[-_LAST_WORDS:]
            raise Failed(f"{why}. It wrote: {words}")
        found: dict[str, Any] = json.loads(line)
        return found

    def look(self) -> Tree:
        """What the program and its processes have used so far. Counts for `peak`."""
        assert self._process is not None
        tree = tree_of(_usages(), self._process.pid)
        self.peak = max(self.peak, tree.resident)
        return tree

    def shared_bytes(self) -> int | None:
        """Memory of all processes, what several share counted once; None if that is not told."""
        try:
            files = [Path("/proc", str(one.pid), "smaps_rollup") for one in self.look().processes]
            return sum(read_field(file.read_text(), "Pss") for file in files)
        except OSError:
            return None

    def cpu_seconds(self) -> float:
        """Processor time so far, of the program and of all that it started."""
        return self.look().cpu

    def own_peak(self) -> int:
        """The most bytes that the program itself had resident."""
        assert self._process is not None
        return read_field(Path(f"/proc/{self._process.pid}/status").read_text(), "VmHWM")

    async def _keep_looking(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _end(self, *, is_asked: bool) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_SECONDS if is_asked else 0):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        # What the program has started after the last look is its orphan now, and so ours.
        deadline = time.monotonic() + GONE_SECONDS
        left = self._leftover()
        while left:
            await asyncio.sleep(_LOOK_SECONDS)  # the system does not tell of it
            left = self._leftover()
            if time.monotonic() > deadline:
                self.left = max(self.left, len(left))
                for each in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each.pid, signal.SIGKILL)

    def _leftover(self) -> frozenset[Process]:
        """Those of its processes that still run. Those that have ended are buried."""
        usages = _usages()
        left = _descendants(usages) - self._others
        dead = {usage.process for usage in usages if usage.is_dead}
        for each in left & dead:
            if each.parent == os.getpid():
                with contextlib.suppress(ChildProcessError):  # somebody was faster
                    os.waitpid(each.pid, os.WNOHANG)
        return left - dead


def _prepare() -> None:
    """In the child, before its program starts."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    # Daemons that it starts stay its descendants, so that they are counted.
    prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants(usages: Iterable[Usage]) -> frozenset[Process]:
    return frozenset(family((usage.process for usage in usages), os.getpid()))


def _usages() -> list[Usage]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                usage = read_usage(Path("/proc", name, "stat").read_text(errors="replace"))
                if not usage.is_dead:
                    usage = usage._replace(own=_cpu_seconds(usage.process.pid))
                found.append(usage)
    return found


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process to the nanosecond, where /proc tells it to 10 ms.

    The number of such a clock is made as clock_getcpuclockid(3) makes it. Raises OSError if the
    process has ended.
    """
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)
