"""``python -m aiosollol.engines.ray.sidecar``: the Ray driver, in a process beside the program.

Ray exits the driver's process when its cluster has been gone for a minute, handles its signals and
blocks its event loop. So the driver runs in this process, which exchanges frames with the program
through stdin and stdout (`ray.protocol`). This process ends at the end of stdin, which the system
closes however the program ends; so does the cluster, if this process started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from aiosollol.engines.ray import cluster, coordinator, protocol
from aiosollol.engines.ray.protocol import FAILED, FRAME_DONE, REFUSED
from aiosollol.errors import EngineError
from aiosollol.net.subprocess import follow

if TYPE_CHECKING:
    from aiosollol.engines.ray.workers import WorkerGroup

LEAVE_SECONDS = 1.0
END_SECONDS = 8.0
"""Time from the end of stdin until this process and its children are killed."""


class Sidecar:
    """Carries out orders. The method ``do_x`` handles the order "x"."""

    def __init__(self) -> None:
        self._cluster: cluster.Cluster | None = None
        self._coordinator: Any = None
        self._crews: dict[str, WorkerGroup] = {}
        self._members: set[str] = set()

    async def do_join(self, address: str | None) -> dict[str, Any]:
        self._cluster = cluster.join(address)
        return self._cluster._asdict()

    # The coordinator.

    async def do_exchange(self, report: dict[str, Any]) -> dict[str, Any]:
        self._members.add(report["member"])
        answered = await self._exchange(report)
        if coordinator.is_replaceable(answered):
            import ray

            ray.kill(self._find_coordinator())
            self._coordinator = None
            answered = await self._exchange(report)
        return coordinator.check(answered)

    async def _exchange(self, report: dict[str, Any]) -> dict[str, Any]:
        from ray.exceptions import ActorDiedError

        try:
            answered = await self._find_coordinator().exchange.remote(report)
        except ActorDiedError:
            self._coordinator = None  # it was killed for good: create another
            answered = await self._find_coordinator().exchange.remote(report)
        return dict(answered)

    async def do_leave(self, member: str) -> None:
        self._members.discard(member)
        await self._find_coordinator().leave.remote(member)

    def _find_coordinator(self) -> Any:
        if self._coordinator is None:
            self._coordinator = coordinator.find_coordinator()
        return self._coordinator

    # Workers.

    async def do_hire(self, crew: str, most: int, contract: bytes) -> list[bytes]:
        """Start at most `most` workers for batches; return the greeting of each."""
        from aiosollol.engines.ray.workers import WorkerGroup

        self._crews[crew] = made = WorkerGroup(crew, most, contract)
        try:
            return await made.greetings()
        except BaseException:
            await self.do_dismiss(crew)
            raise

    async def do_run(self, crew: str, worker: int, number: int, order: bytes) -> tuple[str, bytes]:
        return await self._crews[crew].run(worker, number, order)

    async def do_greet(self, crew: str, worker: int) -> bytes:
        return await self._crews[crew].greet(worker)

    async def do_dismiss(self, crew: str) -> None:
        made = self._crews.pop(crew, None)
        if made is not None:
            await made.aclose()

    async def aclose(self) -> None:
        """Leave the cluster, also for a program that could not do it itself."""
        for member in list(self._members):
            with contextlib.suppress(Exception):  # an unreturned lease expires by itself
                async with asyncio.timeout(LEAVE_SECONDS):
                    await self.do_leave(member)
        for crew in list(self._crews):
            await self.do_dismiss(crew)
        if self._cluster is not None:
            cluster.leave(self._cluster)


def _drop(tasks: dict[int, asyncio.Task[None]], number: int, _: object) -> None:
    tasks.pop(number, None)


def in_words(error: Exception) -> tuple[str, str]:
    """The outcome for an error of Ray, with a message: REFUSED with advice for a known cause, else
    FAILED."""
    text = " ".join(str(error).split())
    if "No module named 'aiosollol" in text:
        return REFUSED, (
            "has a machine on which Python cannot import aiosollol: install the same version with "
            "the extra ray there"
        )
    return FAILED, f"failed: {type(error).__name__}: {text[:200]}"


async def serve(orders: asyncio.Queue[Any], answer: Callable[[Any], None]) -> None:
    """Carry out orders concurrently until None arrives. An order is (number, name, arguments).

    Answers are (number, FRAME_DONE, result) or (number, REFUSED or FAILED, problem). The order
    (number, "cancel", ()) cancels the one with that number.
    """
    sidecar = Sidecar()
    tasks: dict[int, asyncio.Task[None]] = {}

    async def carry_out(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            result = await getattr(sidecar, f"do_{name}")(*arguments)
        except asyncio.CancelledError:
            answer((number, REFUSED, "was cancelled"))
            raise
        except (EngineError, cluster.ClusterGone) as error:
            answer((number, REFUSED, getattr(error, "detail", str(error))))
        except Exception as error:
            # Any error of Ray: the program decides how to handle it.
            answer((number, *in_words(error)))
        else:
            answer((number, FRAME_DONE, result))

    while (order := await orders.get()) is not None:
        number, name, arguments = order
        if name == "cancel":
            if number in tasks:
                tasks[number].cancel()
            continue
        tasks[number] = task = asyncio.create_task(carry_out(number, name, arguments))
        task.add_done_callback(partial(_drop, tasks, number))
    for task in list(tasks.values()):
        task.cancel()
    await sidecar.aclose()


def main() -> None:
    orders: asyncio.Queue[Any] = asyncio.Queue()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Printed text, ours or Ray's, must not mix with the frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def write() -> None:
        with contextlib.suppress(OSError):  # the program is gone: stdin has ended too
            while (value := answers.get()) is not None:
                out.write(protocol.pack(value))
                out.flush()

    async def run() -> None:
        follow(_read(), partial(orders.put_nowait, None), orders.put_nowait)
        await serve(orders, answers.put)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    asyncio.run(run())
    answers.put(None)
    writer.join(1.0)
    _end_all()  # Ray's agents may outlive the rest of a cluster started here


def _read() -> Iterator[Any]:
    """The orders until the end of stdin; starts the timer that then kills this process."""
    try:
        yield from protocol.read_all(sys.stdin.buffer)
    finally:
        # The main thread may be in a call to Ray that takes a minute.
        timer = threading.Timer(END_SECONDS, _end_all)
        timer.daemon = True
        timer.start()


def _end_all() -> None:
    """Kill this process and its children, which are in its process group."""
    sys.stderr.flush()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
