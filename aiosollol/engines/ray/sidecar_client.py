"""The program's end of its sidecar: a process that is started when it is needed, and owned here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiosollol.engines.ray import protocol
from aiosollol.errors import EngineError, PoolClosed

SIDECAR = ("-m", "aiosollol.engines.ray.sidecar")
CONNECT_SECONDS = 30.0
"""Until a cluster must have taken us in, if something answers there; by `ray://` it starts a
process for us. Where nothing answers, that is known within a second."""
START_SECONDS = 60.0
"""Until a cluster that is started here must be there, on a busy machine."""
MOST_FAILURES = 3
"""Orders that fail in Ray one after another, until the sidecar is given up with its cluster: it
would wait for that one for ever, and not see the next."""
END_SECONDS = 10.0
"""From the end of its stdin until the sidecar is killed."""

_STDERR_KEPT = 4000
_TOKEN_HINT = (
    "the cluster wants a token: set RAY_AUTH_MODE=token, and have the token of the cluster in "
    "~/.ray/auth_token or RAY_AUTH_TOKEN"
)


class LinkInfo(NamedTuple):
    """The cluster that the sidecar is in. is_own: whether the sidecar started it."""

    address: str
    is_own: bool
    dashboard: str | None
    version: str


class RayLink:
    """The way to a sidecar. `call` starts it if need be, also again after it was lost.

    address: of the cluster, see `ray_cluster.join`. life: goes up with every sidecar; what was made
    in one is gone with it. arguments: what Python runs as sidecar; tests have another.
    """

    def __init__(self, address: str | None, *, arguments: Sequence[str] = SIDECAR) -> None:
        self._address = address
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._failures = 0
        self._stderr: deque[bytes] = deque(maxlen=50)
        self._starting: asyncio.Task[None] | None = None
        self._is_closed = False
        self.life = 0
        self.info: LinkInfo | None = None
        self.seconds_to_start: float | None = None

    @property
    def is_connected(self) -> bool:
        return self.info is not None

    @property
    def pid(self) -> int | None:
        """The sidecar, or None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Be in a cluster. Raises EngineError. Callers at the same time share one start."""
        if self._is_closed:
            raise PoolClosed("the pool is closed")
        if self.info is not None:
            return
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="start Ray's sidecar")
            self._starting.add_done_callback(self._started)
        await asyncio.shield(self._starting)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if not task.cancelled():
            task.exception()  # whoever waited has it, and nobody need have waited

    async def call(self, order: str, *arguments: Any, timeout: float | None) -> Any:
        """What the sidecar answers to an order. Raises EngineError if it cannot, or not in time."""
        await self.start()
        return await self._ask(order, arguments, timeout)

    async def aclose(self) -> None:
        """End the sidecar, politely and then by force. Idempotent."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._end()

    # Starting and ending.

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._end()  # of one that was lost, what is left
        self._stderr.clear()
        self._failures = 0
        try:
            self._process = process = await self._spawn()
            self._tasks = [
                asyncio.create_task(self._read(process), name="read Ray's sidecar"),
                asyncio.create_task(self._read_stderr(process), name="read Ray's sidecar's stderr"),
            ]
            is_named = self._address is not None or bool(os.environ.get("RAY_ADDRESS"))
            seconds = CONNECT_SECONDS if is_named else START_SECONDS
            told = await self._ask("join", (self._address,), seconds)
        except BaseException:
            await self._end(force=True)
            raise
        self.life += 1
        self.info = LinkInfo(**told)
        self.seconds_to_start = loop.time() - began

    async def _spawn(self) -> asyncio.subprocess.Process:
        spawning = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # Ctrl-C in a terminal goes to the whole group: the program gets it, and ends us.
                start_new_session=True,
            )
        )
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            self._process = await spawning  # so that somebody owns it
            raise

    async def _end(self, *, force: bool = False) -> None:
        process, self._process = self._process, None
        self.info = None
        if process is None:
            return
        try:
            assert process.stdin is not None
            process.stdin.close()
            if not force:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_SECONDS):
                        await process.wait()
        finally:
            _kill(process)
            tasks, self._tasks = self._tasks, []
            self._fail("was lost: its process has been ended")
        # Whoever reads its pipes reads to the end, or asyncio would never close them.
        await asyncio.wait([*tasks, asyncio.ensure_future(process.wait())], timeout=END_SECONDS)

    # Orders and answers.

    async def _ask(self, order: str, arguments: tuple[Any, ...], timeout: float | None) -> Any:
        process = self._process
        if process is None:
            raise EngineError("ray", "was lost: its process has ended")
        self._number += 1
        number = self._number
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send(process, (number, order, arguments))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            problem = f"did not answer to {order!r} within {timeout:g} s{self._said()}"
            if self._process is process:
                self._send(process, (number, "cancel", ()))
                self._count_failure(process, problem)
            raise EngineError("ray", problem) from None
        except asyncio.CancelledError:
            if self._process is process:
                self._send(process, (number, "cancel", ()))
            raise
        finally:
            self._waiting.pop(number, None)

    def _send(self, process: asyncio.subprocess.Process, value: Any) -> None:
        assert process.stdin is not None
        if not process.stdin.is_closing():
            process.stdin.write(protocol.pack(value))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        stream = process.stdout
        try:
            while True:
                header = await stream.readexactly(protocol.HEADER)
                body = await stream.readexactly(protocol.length_of(header))
                number, outcome, value = protocol.unpack(body)
                waiting = self._waiting.pop(number, None)
                if waiting is None or waiting.done():
                    continue  # given up
                if outcome == protocol.FRAME_DONE:
                    waiting.set_result(value)
                else:
                    waiting.set_exception(EngineError("ray", value))
                if outcome == protocol.FAILED:
                    self._count_failure(process, value)
                else:
                    self._failures = 0
        except asyncio.IncompleteReadError:
            if self._process is process:
                self._lose(process, f"was lost: its process has ended{self._said()}")

    async def _read_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while chunk := await process.stderr.read(4096):
            self._stderr.append(chunk)

    def _count_failure(self, process: asyncio.subprocess.Process, problem: str) -> None:
        self._failures += 1
        if self._failures >= MOST_FAILURES and self._process is process:
            self._lose(process, problem)

    def _lose(self, process: asyncio.subprocess.Process, problem: str) -> None:
        """Do without this sidecar; the next call starts another, and clears away what is left."""
        self.info = None
        _kill(process)
        self._fail(problem)

    def _fail(self, problem: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            if not each.done():
                each.set_exception(EngineError("ray", problem))

    def _said(self) -> str:
        text = b"".join(self._stderr)[-_STDERR_KEPT:].decode("utf-8", "replace").strip()
        if "InvalidAuthToken" in text or "Unauthenticated" in text:
            return f"; {_TOKEN_HINT}"
        return f"; it said: {text.splitlines()[-1][:300]}" if text else ""


def _kill(process: asyncio.subprocess.Process) -> None:
    """End a sidecar at once, with the cluster that it may have started: they are one group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
