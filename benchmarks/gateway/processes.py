"""Programs on a core of their own, and the processor time that they and their children took."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_CORES = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else [0]
SERVER_CORE, LOAD_CORE = _CORES[0], _CORES[-1]
"""Whose core it is: of who is measured, and of everybody else, the load and the nodes."""

_ROOT = Path(__file__).parents[2]
_LOOK_SECONDS = 0.1
_END_SECONDS = 10.0
_LAST_WORDS = 2000
_SET_DEATH_SIGNAL = 1
_CPU_CLOCK = 2  # of a whole process, all its threads: CPUCLOCK_SCHED in Linux


class Failed(Exception):
    """A program that ended, or was not ready in time. Says what it wrote last."""


class Process(NamedTuple):
    """One process. started: clock ticks after boot, which tells it from a later one of its pid."""

    pid: int
    parent: int
    started: int


def read_stat(text: str) -> Process:
    """A process from ``/proc/PID/stat`` (proc(5)); its name may have spaces and parentheses."""
    before, _, after = text.rpartition(")")
    fields = after.split()  # from the third field on, counted from one
    return Process(int(before.split(" ", 1)[0]), int(fields[1]), int(fields[19]))


def family(processes: Iterable[Process], root: int) -> set[Process]:
    """The process `root` and all its descendants."""
    children: dict[int, list[Process]] = {}
    found: set[Process] = set()
    left: list[Process] = []
    for each in processes:
        children.setdefault(each.parent, []).append(each)
        if each.pid == root:
            left.append(each)
    while left:
        each = left.pop()
        if each not in found:
            found.add(each)
            left += children.get(each.pid, ())
    return found


class Program:
    """A program on one core, as a context manager. It ends with this process (Linux).

    home: a directory of its own, where it runs and its log is written.
    """

    def __init__(
        self,
        command: Sequence[str],
        home: Path,
        *,
        core: int = SERVER_CORE,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._home = home
        self._core = core
        self._env = {**os.environ, "PYTHONPATH": str(_ROOT), **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Program:
        with (self._home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._home,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._prepare,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        started = self._family()
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for left in started & set(_processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(left.pid, signal.SIGKILL)

    def wait_until(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Ask until it is. Raises Failed if the program ends, or after `seconds`."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = (self._home / "log").read_text(errors="replace")[-_LAST_WORDS:]
                raise Failed(f"{self._command[0]} is not ready. It wrote: {words}")
            time.sleep(_LOOK_SECONDS)

    def cpu_seconds(self) -> float:
        """User and system time so far, of the program and of all it started that still run."""
        return sum(_cpu_seconds(each.pid) for each in self._family())

    def _family(self) -> set[Process]:
        assert self._process is not None
        return family(_processes(), self._process.pid)

    def _prepare(self) -> None:
        """In the child, before its program starts."""
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
        os.sched_setaffinity(0, {self._core})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _processes() -> list[Process]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                found.append(read_stat(Path("/proc", name, "stat").read_text(errors="replace")))
    return found


def _cpu_seconds(pid: int) -> float:
    """The sum of utime and stime of ``/proc/PID/stat``, to the nanosecond and not to 10 ms.

    The number of such a clock is made as clock_getcpuclockid(3) makes it.
    """
    try:
        return time.clock_gettime(~pid << 3 | _CPU_CLOCK)
    except OSError:  # it has ended
        return 0.0
