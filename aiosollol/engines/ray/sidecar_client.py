"""The program's connection to its sidecar, a process that it starts on first use and owns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiosollol.engines.ray import protocol
from aiosollol.errors import EngineError, PoolClosed
from aiosollol.net.subprocess import ChildProcess

SIDECAR = ("-m", "aiosollol.engines.ray.sidecar")
CONNECT_SECONDS = 30.0
"""Time to join a cluster that answers; with `ray://` it starts a process for us. If none answers,
that is known within a second."""
START_SECONDS = 60.0
"""Time to start a cluster here, on a busy machine."""
MOST_FAILURES = 3
"""Consecutive orders that fail in Ray before the sidecar is killed: it would wait for its lost
cluster for ever, and not find the next one."""
END_SECONDS = 10.0
"""Time from the end of its stdin until the sidecar is killed."""

_STDERR_KEPT = 4000
_TOKEN_HINT = (
    "the cluster needs a token: set RAY_AUTH_MODE=token, and put the cluster's token in "
    "~/.ray/auth_token or RAY_AUTH_TOKEN"
)


class LinkInfo(NamedTuple):
    """The cluster of the sidecar. is_own: whether the sidecar started it."""

    address: str
    is_own: bool
    dashboard: str | None
    version: str


class RayLink:
    """The connection to a sidecar. `call` starts it if needed, and again after it was lost.

    address: of the cluster, see `ray.cluster.join`.
    arguments: Python's arguments to run the sidecar; tests use another one.
    life: increases with every sidecar; its workers end with it.
    """

    def __init__(self, address: str | None, *, arguments: Sequence[str] = SIDECAR) -> None:
        self._address = address
        self._arguments = arguments
        self._process: ChildProcess | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._failures = 0
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
        """The pid of the sidecar, or None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the sidecar and join. Concurrent callers share one start. Raises EngineError."""
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
            task.exception()  # mark as retrieved: there may be no waiting caller

    async def call(self, order: str, *arguments: Any, timeout: float | None) -> Any:
        """The sidecar's answer to an order. Raises EngineError if it fails, or not in time."""
        await self.start()
        return await self._ask(order, arguments, timeout)

    async def aclose(self) -> None:
        """End the sidecar, by force after `END_SECONDS`. Idempotent."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._end()

    # Starting and ending.

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._end()  # the rest of a lost sidecar
        self._failures = 0
        try:
            self._process = await ChildProcess.spawn(self._arguments, self._read)
            is_named = self._address is not None or bool(os.environ.get("RAY_ADDRESS"))
            seconds = CONNECT_SECONDS if is_named else START_SECONDS
            told = await self._ask("join", (self._address,), seconds)
        except BaseException:
            await self._end(force=True)
            raise
        self.life += 1
        self.info = LinkInfo(**told)
        self.seconds_to_start = loop.time() - began

    async def _end(self, *, force: bool = False) -> None:
        process, self._process = self._process, None
        self.info = None
        if process is None:
            return
        try:
            await process.end(0.0 if force else END_SECONDS)
        finally:
            self._fail("was lost: its process has been ended")

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
            process.write(protocol.pack((number, order, arguments)))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            problem = f"did not answer {order!r} within {timeout:g} s{_said(process)}"
            if self._process is process:
                process.write(protocol.pack((number, "cancel", ())))
                self._count_failure(process, problem)
            raise EngineError("ray", problem) from None
        except asyncio.CancelledError:
            if self._process is process:
                process.write(protocol.pack((number, "cancel", ())))
            raise
        finally:
            self._waiting.pop(number, None)

    async def _read(self, process: ChildProcess) -> None:
        stream = process.stdout
        try:
            while True:
                header = await stream.readexactly(protocol.HEADER)
                body = await stream.readexactly(protocol.length_of(header))
                number, outcome, value = protocol.unpack(body)
                waiting = self._waiting.pop(number, None)
                if waiting is None or waiting.done():
                    continue  # no longer awaited
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
                self._lose(process, f"was lost: its process has ended{_said(process)}")

    def _count_failure(self, process: ChildProcess, problem: str) -> None:
        self._failures += 1
        if self._failures >= MOST_FAILURES and self._process is process:
            self._lose(process, problem)

    def _lose(self, process: ChildProcess, problem: str) -> None:
        """Give up this sidecar; the next call cleans up and starts another."""
        self.info = None
        process.kill()
        self._fail(problem)

    def _fail(self, problem: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            if not each.done():
                each.set_exception(EngineError("ray", problem))


def _said(process: ChildProcess) -> str:
    text = process.said[-_STDERR_KEPT:]
    if "InvalidAuthToken" in text or "Unauthenticated" in text:
        return f"; {_TOKEN_HINT}"
    return f"; it said: {text.splitlines()[-1][:300]}" if text else ""
