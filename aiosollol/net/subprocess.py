"""Python child processes that end with the program that started them, and servers run as such."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiosollol.errors import NodeTimeout, NodeUnreachable

_ANNOUNCEMENT = "listening on "
_END_SECONDS = 5.0  # from SIGTERM until a server is killed
_KILL_SECONDS = 10.0  # from then until its pipes are given up

T = TypeVar("T")


def announce(url: str) -> None:
    """In the child: report the URL it listens on, as the only line on stdout."""
    print(f"{_ANNOUNCEMENT}{url}", flush=True)


@contextlib.contextmanager
def stopping(
    *, with_parent: bool = False, on_line: Callable[[bytes], None] | None = None
) -> Iterator[asyncio.Event]:
    """In the child: an event that is set by SIGINT and SIGTERM.

    with_parent: also when stdin ends, if it is a pipe. The parent holds its other end, and the
    system closes it however the parent dies.
    on_line: called in the event loop with each line from stdin (`ServerProcess.tell`).
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    watched = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Windows has no such handlers, and threads other than the main one may not set them.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
            watched.append(number)
    if with_parent and stat.S_ISFIFO(os.fstat(0).st_mode):
        follow(stdin_lines(), stop.set, on_line)
    try:
        yield stop
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


def follow(
    items: Iterator[T],
    on_end: Callable[[], object],
    on_item: Callable[[T], object] | None = None,
) -> None:
    """Iterate over blocking `items` in a thread, with callbacks in the running event loop.

    With `stdin_lines`, `on_end` is called when the parent process has ended.
    """
    loop = asyncio.get_running_loop()

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the loop ended first
            with contextlib.suppress(OSError):
                for item in items:
                    if on_item is not None:
                        loop.call_soon_threadsafe(on_item, item)
            loop.call_soon_threadsafe(on_end)

    threading.Thread(target=run, daemon=True).start()


def stdin_lines() -> Iterator[bytes]:
    """The lines of stdin, as they arrive. Blocks."""
    rest = b""
    while chunk := os.read(0, 4096):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


class ChildProcess:
    """A Python process with pipes, in a session of its own. `spawn` starts one.

    stdout: for the reader that was passed to `spawn`.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: Callable[[ChildProcess], Coroutine[Any, Any, None]],
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self.stdout = process.stdout
        self._stderr: deque[bytes] = deque(maxlen=50)
        self._is_killed = False
        self._tasks = [
            asyncio.create_task(reader(self), name=f"read process {process.pid}"),
            asyncio.create_task(self._read_stderr(), name=f"read stderr of {process.pid}"),
            asyncio.create_task(self._follow_to_end(), name=f"wait for process {process.pid}"),
        ]

    @classmethod
    async def spawn(
        cls,
        arguments: Sequence[str],
        reader: Callable[[ChildProcess], Coroutine[Any, Any, None]],
        environment: Mapping[str, str] | None = None,
    ) -> ChildProcess:
        """Start ``python ARGUMENTS``. If cancelled, no process is left behind.

        reader: runs in a task, and has to read `stdout` to its end.
        """
        spawning = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **(environment or {})},
                # Ctrl-C in a terminal goes to the whole group: only the parent should get it.
                start_new_session=True,
            )
        )
        try:
            return cls(await asyncio.shield(spawning), reader)
        except asyncio.CancelledError:
            # uvloop would leave the process running.
            await cls(await spawning, reader).end(0.0)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def said(self) -> str:
        """The last lines it wrote to stderr."""
        return b"".join(self._stderr).decode("utf-8", "replace").strip()

    def write(self, data: bytes) -> None:
        """Send `data` to stdin. Does nothing if the process is dead."""
        if not self._stdin.is_closing():
            self._stdin.write(data)

    async def wait(self) -> None:
        """Return when the process and its pipes have ended."""
        await asyncio.wait(self._tasks)  # read pipes to the end, or asyncio never closes them

    async def end(self, seconds: float, number: int | None = None) -> None:
        """Close stdin, and kill the process if it is still there after `seconds`.

        number: a signal to send first.
        """
        try:
            self._stdin.close()
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                if number is not None:
                    self._process.send_signal(number)
                async with asyncio.timeout(seconds):
                    await self.wait()
        finally:
            self.kill()  # also when cancelled: leave nothing running
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_SECONDS):
                await self.wait()

    def kill(self) -> None:
        """Kill the process and its group, which holds all that it started."""
        if self._is_killed:  # only once: the id may be reused by another group
            return
        self._is_killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.pid, signal.SIGKILL)
            else:
                self._process.kill()

    async def _follow_to_end(self) -> None:
        await self._process.wait()
        self.kill()  # processes it left behind

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._stderr.append(chunk)


class ServerProcess:
    """Runs ``python -m MODULE ARGUMENTS``, which calls `announce` and runs until `stopping`.

    name: its name in errors. start_timeout: seconds within which it must announce its URL.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        start_timeout: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._arguments = ("-m", module, *arguments)
        self._start_timeout = start_timeout
        self._environment = environment
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None if it is not running."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> str:
        """Start the server and return its URL.

        Raises NodeUnreachable, with what it wrote to stderr, if it ends instead, and NodeTimeout
        if it is not ready in time. It is not left running then.
        """
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        reader = partial(_read_url, url)
        process = await ChildProcess.spawn(self._arguments, reader, self._environment)
        self._process = process
        try:
            async with asyncio.timeout(self._start_timeout):
                if found := await url:
                    return found
                await process.wait()
        except TimeoutError:
            await self.aclose()
            seconds = f"{self._start_timeout:g} s"
            raise NodeTimeout(self._name, f"not ready within {seconds}{_said(process)}") from None
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        problem = f"ended with code {process.returncode}{_said(process)}"
        raise NodeUnreachable(self._name, problem)

    def tell(self, line: bytes) -> None:
        """Send a line to its stdin: see `stopping`. Does nothing if it is dead."""
        if self._process is not None:
            self._process.write(line + b"\n")

    async def aclose(self) -> None:
        """Send SIGTERM, and kill it if it has not ended in five seconds. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await process.end(_END_SECONDS, signal.SIGTERM)


async def _read_url(found: asyncio.Future[str], process: ChildProcess) -> None:
    async for line in process.stdout:
        _, is_there, url = line.decode("utf-8", "replace").partition(_ANNOUNCEMENT)
        if is_there:
            break
    else:
        url = ""
    if not found.done():
        found.set_result(url.strip())
    while await process.stdout.read(4096):
        pass


def _said(process: ChildProcess) -> str:
    return f"; it said: {process.said[-2000:]}" if process.said else " and said nothing"
