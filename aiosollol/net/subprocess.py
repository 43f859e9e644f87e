"""A server in a Python process of its own, that ends with whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from aiosollol.errors import NodeTimeout, NodeUnreachable

_ANNOUNCEMENT = "listening on "
_END_SECONDS = 5.0  # from the polite request to end until the process is killed


def announce(url: str) -> None:
    """In the process: tell who started it where it listens. The one line that goes to stdout."""
    print(f"{_ANNOUNCEMENT}{url}", flush=True)


@contextlib.contextmanager
def stopping(
    *, with_parent: bool = False, on_line: Callable[[bytes], None] | None = None
) -> Iterator[asyncio.Event]:
    """In the process: an event that is set by SIGINT and SIGTERM.

    With `with_parent` also when stdin ends, if it is a pipe: the other end is held by whoever
    started this process, and the system closes it however that one dies. Lines that come by it
    (`ServerProcess.tell`) are given to `on_line`, in the event loop.
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
        threading.Thread(target=_watch_stdin, args=(loop, stop, on_line), daemon=True).start()
    try:
        yield stop
    finally:
        for number in watched:
            loop.remove_signal_handler(number)


def _watch_stdin(
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    on_line: Callable[[bytes], None] | None,
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop ended first
        with contextlib.suppress(OSError):
            rest = b""
            while chunk := os.read(0, 4096):
                *lines, rest = (rest + chunk).split(b"\n")
                if on_line is not None:
                    for line in lines:
                        loop.call_soon_threadsafe(on_line, line)
        loop.call_soon_threadsafe(stop.set)


class ServerProcess:
    """``python -m MODULE ARGUMENTS``, which calls `announce` and then runs until `stopping`.

    name: what errors call it. start_timeout: seconds within which it must announce itself.
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
        self._command = (sys.executable, "-m", module, *arguments)
        self._start_timeout = start_timeout
        self._environment = {**os.environ, **(environment or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: deque[bytes] = deque(maxlen=50)
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process, or None while there is none."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> str:
        """Start it; its URL.

        Raises NodeUnreachable with what it wrote to stderr if it ends instead, and NodeTimeout if
        it is not ready in time. Neither leaves it running.
        """
        spawning = asyncio.ensure_future(self._spawn())
        try:
            self._process = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            # Cancelled half way, uvloop leaves a process behind that nobody owns.
            self._process = await spawning
            await self.aclose()
            raise
        self._reader = asyncio.create_task(self._read_stderr(self._process))
        try:
            async with asyncio.timeout(self._start_timeout):
                return await self._read_url(self._process)
        except TimeoutError:
            await self.aclose()
            seconds = f"{self._start_timeout:g} s"
            raise NodeTimeout(self._name, f"not ready within {seconds}{self._said()}") from None
        except BaseException:
            await self.aclose()
            raise

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            # Ctrl-C in a terminal goes to the whole group: the parent gets it, and ends us.
            start_new_session=True,
        )

    def tell(self, line: bytes) -> None:
        """Send it a line: see `stopping`. Nothing happens if it is dead."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(line + b"\n")

    async def aclose(self) -> None:
        """End it: politely, and by force if that takes more than five seconds. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            async with asyncio.timeout(_END_SECONDS):
                await self._wait(process)
        except TimeoutError:
            process.kill()
            await self._wait(process)
        except BaseException:
            # Cancelled: no time to be polite, but nothing may be left running.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        await process.stdout.read()  # to its end, or the transport is never closed
        if self._reader is not None:
            await asyncio.wait([self._reader])
        await process.wait()

    async def _read_url(self, process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        async for line in process.stdout:
            _, found, url = line.decode("utf-8", "replace").partition(_ANNOUNCEMENT)
            if found:
                return url.strip()
        await self._wait(process)
        raise NodeUnreachable(self._name, f"ended with code {process.returncode}{self._said()}")

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(4096):
            self._stderr.append(chunk)

    def _said(self) -> str:
        text = b"".join(self._stderr).decode("utf-8", "replace").strip()
        return f"; it said: {text[-2000:]}" if text else " and said nothing"
