"""`Supervisor`: starts, restarts and stops several processes that share a port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from aiosollol.errors import SollolError
from aiosollol.gateway.serving.listener import RELOAD, Signals

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger("aiosollol")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a process that ended by itself is restarted; doubled each time."""

SOUND_SECONDS = 10.0
"""A process that ran for this long is healthy: the next pause is `FIRST_PAUSE` again."""

_READY = b"ready"
_END_SECONDS = 5.0  # after a process's `patience`, until it is killed


def announce_ready() -> None:
    """In a child process: report to the supervisor that it serves, as its only line on stdout."""
    os.write(1, _READY + b"\n")


class _Child:
    """The process with one index, if it is running."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: asyncio.subprocess.Process | None = None
        self.is_ready = False
        self.is_stale = False  # may have read its settings before they changed

    def send(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Runs `count` processes of one command until a signal stops it.

    Each process calls `announce_ready` once it serves.

    command: of each process.
    brief: the line for the stdin of the process with an index. Its stdin stays open: end of file
        means that its parent has died.
    patience: seconds that a process has for its requests when it is stopped.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        brief: Callable[[int], bytes],
        *,
        patience: float,
    ) -> None:
        self._command = tuple(command)
        self._brief = brief
        self._patience = patience
        self._children = [_Child(index) for index in range(count)]
        self._serving = asyncio.Event()
        self._was_serving = False
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> list[int | None]:
        """The pids by index; None for a process that does not serve now."""
        return [
            child.process.pid if child.is_ready and child.process is not None else None
            for child in self._children
        ]

    async def run(self, signals: Signals, on_ready: Callable[[], None]) -> None:
        """Start the processes, and return when `signals` has stopped them all.

        on_ready: called when all serve.

        Raises SollolError if one ends before all served; none is left running then.
        """
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        telling = asyncio.create_task(self._tell_ready(on_ready))
        stopping = asyncio.create_task(signals.stop.wait())
        try:
            await asyncio.wait([*keepers, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            telling.cancel()
            stopping.cancel()
            await self._end(signals, keepers)
        for keeper in keepers:
            if not keeper.cancelled():
                keeper.result()

    def reload(self) -> None:
        """Make each process read its settings again."""
        assert RELOAD is not None
        for child in self._children:
            if child.is_ready:
                child.send(RELOAD)
            else:  # it has no handler for the signal yet, which would kill it
                child.is_stale = True

    async def _tell_ready(self, on_ready: Callable[[], None]) -> None:
        await self._serving.wait()
        on_ready()

    async def _keep(self, child: _Child) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._run_once(child)
            if self._stopping.is_set():
                return
            if not self._was_serving and not self._serving.is_set():
                raise SollolError(f"process {child.index} ended with {_code_text(code)}")
            if loop.time() - began >= SOUND_SECONDS:
                pause = FIRST_PAUSE
            log.warning(
                "process %d ended with %s; restarting it in %g s",
                *(child.index, _code_text(code), pause),
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run_once(self, child: _Child) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C goes to the whole process group: only the parent shall get it, and stop us.
            start_new_session=True,
        )
        child.process = process
        if self._stopping.is_set():  # stopped before the process existed
            child.send(signal.SIGTERM)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(self._brief(child.index) + b"\n")
                await process.stdin.drain()
            if (await process.stdout.readline()).strip() == _READY:
                self._is_now_ready(child)
            await process.stdout.read()
            return await process.wait()
        except asyncio.CancelledError:
            child.send(signal.SIGKILL)
            await process.wait()
            raise
        finally:
            child.is_ready = False
            process.stdin.close()

    def _is_now_ready(self, child: _Child) -> None:
        child.is_ready = True
        if child.is_stale and RELOAD is not None:
            child.is_stale = False
            child.send(RELOAD)
        if all(each.is_ready for each in self._children):
            self._was_serving = True
            self._serving.set()

    async def _end(self, signals: Signals, keepers: list[asyncio.Task[None]]) -> None:
        """Send SIGTERM, once more at a second signal, and SIGKILL to what still runs after that."""
        for child in self._children:
            child.send(signal.SIGTERM)
        hurried = asyncio.create_task(signals.hurry.wait())
        try:
            all_done = asyncio.create_task(_all_done(keepers))
            await asyncio.wait(
                {all_done, hurried},
                timeout=self._patience + _END_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if signals.hurry.is_set() and not all_done.done():
                for child in self._children:
                    child.send(signal.SIGTERM)
                await asyncio.wait({all_done}, timeout=_END_SECONDS)
            for keeper in keepers:
                keeper.cancel()  # kills a process that still runs
            await all_done
        finally:
            hurried.cancel()


async def _all_done(keepers: list[asyncio.Task[None]]) -> bool:
    await asyncio.wait(keepers)
    return True


def _code_text(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


PROCESS = "process"
"""The label for a sample's process, if a gateway has several."""

_SECONDS = 2.0  # for a process to answer; otherwise it is left out


class Siblings:
    """Exchanges metrics with the other processes of this gateway.

    folder: of the sockets.
    count: number of processes.
    """

    def __init__(self, folder: str, count: int) -> None:
        self.folder = folder
        self.count = count
        self._server: asyncio.Server | None = None

    async def tell(self, index: int, families: Callable[[], Iterable[Metric]]) -> None:
        """Start serving this process's metrics to the others. index: of this process."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(orjson.dumps(as_data(families())))
                await writer.drain()
            writer.close()

        path = self._path(index)
        await asyncio.to_thread(_remove, path)  # left by a killed process
        self._server = await asyncio.start_unix_server(answer, path)

    async def gather(self) -> list[Metric]:
        """The families of all processes, each sample with the label of its process."""
        parts = await asyncio.gather(*map(self._ask, range(self.count)))
        return merged({str(index): families for index, families in enumerate(parts)})

    async def aclose(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _ask(self, index: int) -> list[Metric]:
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(index))
                try:
                    data = await reader.read()
                finally:
                    writer.close()
                return from_data(orjson.loads(data))
        except (OSError, TimeoutError, orjson.JSONDecodeError):
            return []  # it is being restarted

    def _path(self, index: int) -> str:
        return os.path.join(self.folder, f"{index}.sock")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def merged(parts: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """The families of several processes as one, each sample with the label of its process.

    They are not summed: a restarted process begins at 0, and only Prometheus, which sees each
    process over time, can handle that reset.
    """
    from prometheus_client import Metric

    found: dict[str, Metric] = {}
    for process, families in parts.items():
        for family in families:
            known = found.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, PROCESS: process}, sample.value)
    return list(found.values())


def as_data(families: Iterable[Metric]) -> list[Any]:
    """Metric families as data for JSON."""
    return [
        [family.name, family.type, family.documentation, [each[:3] for each in family.samples]]
        for family in families
    ]


def from_data(data: Iterable[Any]) -> list[Metric]:
    """The metric families in data made by `as_data`."""
    from prometheus_client import Metric

    found = []
    for name, kind, about, samples in data:
        family = Metric(name, about, kind)
        for sample in samples:
            family.add_sample(*sample)
        found.append(family)
    return found
