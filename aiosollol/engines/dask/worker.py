"""What runs in a worker of Dask: the far end of the engine, kept between partitions by a plugin.

Only workers, and clients with the engine turned on, import this: it needs `distributed`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from aiosollol.core.offload.partitions import Partition, PartitionResult
from aiosollol.core.offload.write_report import BadPart, WriteOrder, WrittenPart
from aiosollol.engines.common.remote_pool import Look, RemotePool, Terms
from aiosollol.errors import EngineError, SollolError

if TYPE_CHECKING:  # it is hardly typed, and need not be there where types are checked
    distributed: Any
else:
    import distributed

FORGOTTEN_SECONDS = 60.0
"""A pool whose client has said nothing for so long is closed; if it comes back there is another."""

GREET_SECONDS = 15.0
"""How long a worker that is new may have texts before its client has told it the nodes."""

_greeted = threading.Condition()
"""Notified when a client has told a worker in this process its nodes."""

T = TypeVar("T")


class FarEndPlugin(distributed.WorkerPlugin):  # type: ignore[misc]  # of a type that is not known
    """Keeps one pool in a worker for one client, between its partitions.

    name: of the plugin, which has the client's id in it. settings: the client's. The pool is made
    when the client first speaks to this worker.
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
        """Dask tells of what becomes of its tasks: one that nobody wants any more ends here.

        Dask itself lets it run to its end. That is also how the work of a client that died ends.
        """
        if finish == "released" and key in self._running:
            self._running[key].cancel()

    @property
    def knows_nodes(self) -> bool:
        """Whether its client has spoken to it."""
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
            raise EngineError("dask", f"gave {self._worker.address} texts before it knew the nodes")
        return await self._run(key, self._end.embed(partition))

    async def _run(self, key: str, work: Coroutine[Any, Any, T]) -> T:
        self._running[key] = task = asyncio.create_task(work)
        try:
            return await task
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if this is not None and this.cancelling():
                raise
            raise EngineError("dask", "does not want this partition any more") from None
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
    """Where workers say which partition they begin with."""
    return f"{name}-begun"


async def attach(name: str, settings: Mapping[str, Any], dask_worker: Any = None) -> None:
    """Give this worker the plugin. Not by way of the scheduler, which would give it to every worker
    from then on: one without aiosollol could not start any more, even after this client's death."""
    logging.getLogger("distributed.worker").addFilter(_is_news)
    if name not in dask_worker.plugins:
        await dask_worker.plugin_add(plugin=FarEndPlugin(name, settings), name=name)


def _is_news(record: logging.LogRecord) -> bool:
    """What a worker's log is for: not that it was told its terms again, twice a second."""
    return record.args != (obey.__name__,)


async def detach(name: str, dask_worker: Any = None) -> None:
    """Take the plugin away, and end what it does."""
    if name in dask_worker.plugins:
        await dask_worker.plugin_remove(name)


async def obey(name: str, terms: Terms, dask_worker: Any = None) -> Look | None:
    """Tell this worker its terms; how it is. None if it does not have the plugin yet."""
    plugin = dask_worker.plugins.get(name)
    return None if plugin is None else await plugin.obey(terms)


async def embed(name: str, key: str, partition: Partition) -> PartitionResult | SollolError:
    """A task of Dask. What fails is returned: what tasks raise, Dask logs with their arguments."""
    worker = distributed.get_worker()
    worker.log_event(begun_topic(name), partition.index)
    try:
        return await _plugin(worker, name).embed(key, partition)
    except SollolError as error:
        return error


def write(
    name: str, order: WriteOrder, index: int, number: int, part: Any
) -> WrittenPart | BadPart:
    """A task of Dask, in a thread: embed a partition of a collection and write it to its file.

    index: its place in the collection. number: its name among all partitions of the client.
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
    """As `_plugin`, in a thread. Where Dask chooses the worker, it may be one that was started a
    moment ago, in place of one that died, and has yet to be told of us."""

    def is_greeted() -> bool:
        plugin = worker.plugins.get(name)
        return plugin is not None and bool(plugin.knows_nodes)

    with _greeted:
        _greeted.wait_for(is_greeted, GREET_SECONDS)
    return _plugin(worker, name)


def _plugin(worker: Any, name: str) -> FarEndPlugin:
    plugin = worker.plugins.get(name)
    if not isinstance(plugin, FarEndPlugin):
        raise EngineError("dask", f"worker {worker.address} has been told to forget its pool")
    return plugin
