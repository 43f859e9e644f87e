"""`Writing`: has Dask workers embed and write a collection, without copying it to this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from aiosollol.cluster.state import ClusterState
from aiosollol.core.offload.engine_choice import EngineOutcome
from aiosollol.core.offload.partitions import confined, is_within
from aiosollol.core.offload.write_report import (
    BadPart,
    WriteOrder,
    WriteReport,
    WrittenPart,
)
from aiosollol.core.report import EngineNote
from aiosollol.engines.dask import worker
from aiosollol.engines.dask.batch import WorkerWatch
from aiosollol.engines.dask.link import DaskLink
from aiosollol.engines.lease_leader import LeaseLeader
from aiosollol.errors import EngineError, InvalidInput, RequestFailed, SollolError, first_of

if TYPE_CHECKING:  # untyped, and not required for type checking
    dask: Any
else:
    import dask

_FILE = re.compile(r"part-\d{5,}\.parquet")


class Writing:
    """Writes one collection. Make one within `LeaseLeader.leading`, and await `run` once.

    numbers: of partitions, unique within a client.
    """

    def __init__(
        self,
        link: DaskLink,
        leader: LeaseLeader,
        registry: ClusterState,
        collection: Any,
        order: WriteOrder,
        numbers: Iterator[int],
    ) -> None:
        self._link = link
        self._leader = leader
        self._registry = registry
        self._collection = collection
        self._order = order
        self._outcome = EngineOutcome(dashboard=link.dashboard)
        self._numbers = numbers
        self._places: list[str] | None = None

    async def run(self, on_progress: Callable[[int, int], None] | None) -> WriteReport:
        """Return when every partition is written.

        Raises InvalidInput, EngineError, and RequestFailed for a text without a vector. In any
        case, every file is complete.
        """
        began = self._registry.clock()
        order = self._order
        parts = await asyncio.to_thread(_parts_of, self._collection)
        found = await self._leader.wait_fit(self._having())
        self._places = confined(found)
        await asyncio.to_thread(_prepare, order)
        try:
            written = await self._write(parts, on_progress)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(_clean, order)
        outcome = self._outcome
        self._registry.merge_counters(outcome.counters)
        return WriteReport(
            directory=order.directory,
            files=tuple(part.file for part in written),
            rows=sum(part.rows for part in written),
            failed=sum(part.failed for part in written),
            seconds=self._registry.clock() - began,
            dim=order.dim,
            nodes=outcome.nodes,
            engine=outcome.note(EngineNote("dask", "a collection of Dask")),
        )

    async def _write(
        self, parts: Sequence[Any], on_progress: Callable[[int, int], None] | None
    ) -> list[WrittenPart]:
        # One graph for all: common parts are computed once, and the scheduler limits each worker's
        # partitions to its threads.
        write = dask.delayed(worker.write, pure=False)
        link = self._link
        numbers = [next(self._numbers) for _ in parts]
        tasks = [
            write(link.name, self._order, index, numbers[index], part)
            for index, part in enumerate(parts)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
            futures = link.client.compute(tasks, workers=self._places)
        written: dict[int, WrittenPart] = {}

        async def take(index: int) -> None:
            written[index] = self._taken(index, await _result(link, futures[index]))
            if on_progress is not None:
                on_progress(len(written), len(parts))
            if len(written) == len(parts):
                group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._give_up_alone)
                for index in range(len(parts)):
                    group.start_soon(take, index)
        except BaseExceptionGroup as errors:
            raise first_of(errors) from None
        finally:
            for future in futures:
                future.release()
            for number in numbers:
                self._outcome.reruns += max(0, link.begun.pop(number, 1) - 1)
        return [written[index] for index in range(len(parts))]

    def _taken(self, index: int, answer: WrittenPart | BadPart) -> WrittenPart:
        if isinstance(answer, WrittenPart):
            self._outcome.add(0, answer.nodes, answer.counters, {}, answer.worker)
            return answer
        if answer.item is None:
            raise answer.error
        raise RequestFailed(
            f"item {answer.item} of partition {index} has no vector: {_words(answer.error)} "
            '(on_error="return" writes the others, and the error of this one)'
        ) from answer.error

    async def _give_up_alone(self) -> None:
        """Raise EngineError when no usable worker is left."""
        watch = WorkerWatch(
            self._link, self._leader, self._having, lambda name: is_within(name, self._places)
        )
        while True:
            await watch.wait_changed()

    def _having(self) -> list[str]:
        """The nodes that have the model."""
        model = self._order.settings.model
        return [node.name for node in self._registry if node.has_model(model)]


async def _result(link: DaskLink, future: Any) -> WrittenPart | BadPart:
    try:
        answer: WrittenPart | BadPart = await link.result(future)
        return answer
    except Exception as error:
        words = "; ".join(
            filter(None, (str(error) or type(error).__name__, str(error.__cause__ or "")))
        )
        raise EngineError("dask", f"could not compute a partition: {words}") from error


def _parts_of(collection: Any) -> list[Any]:
    """The partitions of a bag or a dataframe, each as a `Delayed`. Raises InvalidInput."""
    if not hasattr(collection, "to_delayed") or not dask.is_dask_collection(collection):
        raise InvalidInput(
            f"collection must be a dask.bag.Bag or dask.dataframe.DataFrame, not {collection!r}"
        )
    parts = list(collection.to_delayed())
    if not parts:
        raise InvalidInput(f"{collection!r} has no partitions")
    return parts


def _prepare(order: WriteOrder) -> None:
    """Create the directory, without files of an earlier run. Raises InvalidInput."""
    try:
        os.makedirs(order.directory, exist_ok=True)
        there = sorted(filter(_FILE.fullmatch, os.listdir(order.directory)))
        if there and not order.overwrite:
            raise InvalidInput(
                f"{order.directory} already has {len(there)} files such as {there[0]}: "
                "name another directory, or pass overwrite=True"
            )
        for name in there:
            os.unlink(os.path.join(order.directory, name))
    except OSError as error:
        raise InvalidInput(f"cannot write to {order.directory}: {error.strerror}") from error


def _clean(order: WriteOrder) -> None:
    """Remove the unfinished files of workers that died."""
    with contextlib.suppress(OSError):
        for name in os.listdir(order.directory):
            if name.startswith(".part-") and name.endswith(f".{order.run}"):
                os.unlink(os.path.join(order.directory, name))


def _words(error: SollolError) -> str:
    return re.sub(r"^item \d+ ", "it ", str(error))  # its index within a slice is of no use
