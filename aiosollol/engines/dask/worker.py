"""The code in a Dask worker: a plugin keeps the engine's remote pool between partitions.

Only workers, and clients with this engine enabled, import this: it needs `distributed`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from aiosollol.core.offload.partitions import Partition, PartitionResult
from aiosollol.core.offload.write_report import BadPart, WriteOrder, WrittenPart
from aiosollol.engines.remote_pool import Look, RemotePool, Terms
from aiosollol.errors import EngineError, SollolError

if TYPE_CHECKING:  # hardly typed, and not required for type checking
    distributed: Any
else:
    import distributed

FORGOTTEN_SECONDS = 60.0
"""A pool is closed when its client was silent for this long; if it returns, it gets a new one."""

GREET_SECONDS = 15.0
"""How long a task in a new worker waits until the client has sent the nodes."""

_greeted = threading.Condition()
"""Notified when a client has sent its nodes to a worker in this process."""

T = TypeVar("T")


class FarEndPlugin(distributed.WorkerPlugin):  # type: ignore[misc]  # the base class is untyped
    """Keeps one client's pool in a worker between partitions.

    The pool is created at the client's first message.

    name: of the plugin; contains the client's id.
    settings: the client's.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self._settings = dict(settings)

    def setup(self, worker: Any) -> None:
        self._worker = worker
        self._end: RemotePool | None = None
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._forgetting: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def teardown(self, worker: Any) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        for task in self._running.values():
            task.cancel()
        await self._close()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Called by Dask when a task changes its state: cancels the work of a released task.

        Dask itself would let it finish. This also ends the work of a client that died.
        """
        if finish == "released" and key in self._running:
            self._running[key].cancel()

    @property
    def knows_nodes(self) -> bool:
        """Whether its client has sent the nodes."""
        return self._end is not None

    async def obey(self, terms: Terms) -> Look:
        if self._end is None:
            self._end = RemotePool(self._worker.address, self._settings)
            with _greeted:
                _greeted.notify_all()
        if self._forgetting is not None:
            self._forgetting.cancel()
        loop = asyncio.get_running_loop()
        self._forgetting = loop.call_later(FORGOTTEN_SECONDS, self._forget)
        return await self._end.obey(terms)

    async def embed(self, key: str, partition: Partition) -> PartitionResult:
        """The vectors of a partition, unless the task `key` is cancelled. Raises SollolError."""
        if self._end is None:
            raise EngineError("dask", f"sent texts to {self._worker.address} before its nodes")
        return await self._run(key, self._end.embed(partition))

    async def _run(self, key: str, work: Coroutine[Any, Any, T]) -> T:
        self._running[key] = task = asyncio.create_task(work)
        try:
            return await task
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise
            raise EngineError("dask", "has cancelled this partition") from None
        finally:
            del self._running[key]

    def _forget(self) -> None:
        task = asyncio.create_task(self._close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            await end.aclose()


def begun_topic(name: str) -> str:
    """The topic on which workers report each partition that they begin."""
    return f"{name}-begun"


async def attach(name: str, settings: Mapping[str, Any], dask_worker: Any = None) -> None:
    """Add the plugin to this worker. The scheduler would add it to every later worker too: one
    without aiosollol could then not start, even after this client's end."""
    logging.getLogger("distributed.worker").addFilter(_is_news)
    if name not in dask_worker.plugins:
        await dask_worker.plugin_add(plugin=FarEndPlugin(name, settings), name=name)


def _is_news(record: logging.LogRecord) -> bool:
    """Filter out the log records of new terms, which are sent twice a second."""
    return record.args != (obey.__name__,)


async def detach(name: str, dask_worker: Any = None) -> None:
    """Remove the plugin, and cancel its work."""
    if name in dask_worker.plugins:
        await dask_worker.plugin_remove(name)


async def obey(name: str, terms: Terms, dask_worker: Any = None) -> Look | None:
    """Apply terms in this worker; its state. None if it does not have the plugin."""
    plugin = dask_worker.plugins.get(name)
    return None if plugin is None else await plugin.obey(terms)


async def embed(name: str, key: str, partition: Partition) -> PartitionResult | SollolError:
    """A Dask task. Errors are returned, since Dask logs exceptions with the task's arguments."""
    worker = distributed.get_worker()
    worker.log_event(begun_topic(name), partition.index)
    try:
        return await _plugin(worker, name).embed(key, partition)
    except SollolError as error:
        return error


def write(
    name: str, order: WriteOrder, index: int, number: int, part: Any
) -> WrittenPart | BadPart:
    """A Dask task, run in a thread: embed a partition of a collection and write it to its file.

    index: of the partition in the collection.
    number: of the partition among all of the client.
    """
    from aiosollol.engines.dask.parquet import write_part

    worker = distributed.get_worker()
    worker.log_event(begun_topic(name), number)
    key = str(worker.get_current_task())
    loop = worker.loop.asyncio_loop

    def embed_here(partition: Partition) -> PartitionResult:
        coroutine = _awaited_plugin(worker, name).embed(key, partition)
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        return write_part(order, index, part, embed_here)
    except SollolError as error:
        return BadPart(error)


def _awaited_plugin(worker: Any, name: str) -> FarEndPlugin:
    """As `_plugin`, in a thread, but wait for it: Dask may choose a worker that was just started in
    place of a dead one, and is not prepared yet."""

    def is_greeted() -> bool:
        plugin = worker.plugins.get(name)
        return plugin is not None and bool(plugin.knows_nodes)

    with _greeted:
        _greeted.wait_for(is_greeted, GREET_SECONDS)
    return _plugin(worker, name)


def _plugin(worker: Any, name: str) -> FarEndPlugin:
    plugin = worker.plugins.get(name)
    if not isinstance(plugin, FarEndPlugin):
        raise EngineError("dask", f"worker {worker.address} no longer has a pool for this client")
    return plugin
