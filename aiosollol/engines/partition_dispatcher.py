"""`PartitionDispatcher`: sends a batch to an engine's workers, a few partitions at a time.

`core.offload.partitions` decides which worker gets which partition; `ports.WorkerLink` sends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import anyio

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome, partitions
from aiosollol.core.offload.partitions import (
    Partition,
    PartitionAnswer,
    PendingPartition,
    PendingPartitions,
    WorkerDied,
    failures,
)
from aiosollol.errors import EngineError, PoolClosed, SollolError, first_of
from aiosollol.ports import WorkerLink

log = logging.getLogger("aiosollol")


class PartitionDispatcher:
    """Dispatches one batch. Await `run` once.

    put: as for `ports.Engine.carry`.
    numbers: of partitions, unique within a client.
    """

    def __init__(
        self,
        link: WorkerLink,
        job: EngineJob,
        put: Callable[[int, Embeddings], None],
        numbers: Iterator[int],
        dashboard: str | None,
    ) -> None:
        self._link = link
        self._job = job
        self._put = put
        self._numbers = numbers
        self._outcome = EngineOutcome(dashboard=dashboard)
        workers = sum(room > 0 for room in link.rooms().values())
        cut = partitions(job.texts, job.tokens, job.predicted_seconds, workers)
        self._parcels = PendingPartitions(cut)
        self._wake = anyio.Event()
        self._watching = anyio.CancelScope()
        self._has_put = False

    async def run(self) -> EngineOutcome:
        """Return when every text has a vector or an error. Raises EngineError before the first."""
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch)
                while not self._parcels.is_over:
                    self._wake = anyio.Event()
                    for parcel in self._parcels.give(self._link.rooms()):
                        group.start_soon(self._carry, parcel)
                    await self._wake.wait()
                self._watching.cancel()
        except BaseExceptionGroup as errors:
            # An exception of the caller's `on_progress` must propagate unchanged.
            error = first_of(errors)
            if not isinstance(error, EngineError | PoolClosed) or not self._has_put:
                raise error from None
            failures(self._outcome, self._parcels.left(), error)
        return self._outcome

    async def _watch(self) -> None:
        with self._watching:
            while True:
                await self._link.wait_changed()
                self._wake.set()

    async def _carry(self, parcel: PendingPartition) -> None:
        """Send a partition to a worker, and handle its answer."""
        job, items, worker = self._job, parcel.items, parcel.worker
        texts = list(job.texts[items.start : items.stop])
        index = next(self._numbers)
        partition = Partition(index, job.settings, texts, job.planning, job.digest)
        answer = await self._link.embed(worker, partition)
        died = answer if isinstance(answer, WorkerDied) else None
        if self._parcels.answered(parcel, answer, self._link.rooms().keys()):
            self._outcome.reruns += died is None or died.has_begun
        else:
            self._settle(parcel, answer)
        self._wake.set()
        if died is not None:
            log.info("%s: a worker died during a partition: %s", self._link.engine, died.why)
            await self._link.recover(worker)
            self._wake.set()

    def _settle(self, parcel: PendingPartition, answer: PartitionAnswer) -> None:
        if isinstance(answer, WorkerDied):
            why = f"lost {parcel.tries} workers on this partition: {answer.why}"
            answer = EngineError(self._link.engine, why)
        if isinstance(answer, SollolError):
            failures(self._outcome, [parcel.items], answer)
            return
        outcome, start = self._outcome, parcel.items.start
        outcome.add(start, answer.nodes, answer.counters, answer.errors, answer.worker)
        outcome.splits += answer.splits
        outcome.copies += answer.copies
        outcome.truncated += answer.truncated
        self._has_put = True
        self._put(start, answer.embeddings)
