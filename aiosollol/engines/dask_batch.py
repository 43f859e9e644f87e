"""One batch on the workers of Dask: partitions out, vectors back, a bounded number under way."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from typing import Any

import anyio
from anyio.abc import TaskGroup

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.engines import EngineJob, EngineOutcome, partitions
from aiosollol.core.workers import (
    MOST_TRIES,
    WorkerState,
    failures,
    fitness,
    is_of_worker,
    nobody_fit,
    room,
    taking_part,
)
from aiosollol.engines import dask_worker
from aiosollol.engines.dask_link import Link
from aiosollol.engines.leading import Leader
from aiosollol.engines.worker import Partition, PartitionResult
from aiosollol.errors import EngineError, SollolError, first_of

LONELY_SECONDS = 30.0
"""How long a batch waits for any worker to come back when all are lost."""
LOST_ALL = f"has lost all its workers, and none came back within {LONELY_SECONDS:g} s"


class _Lost(EngineError):
    """A worker died with a partition in hand."""


class DaskBatch:
    """One batch on its way. Make one within `Leader.leading`, and await `run` once.

    nodes: names of those that have the model. numbers: of partitions, no two of a client alike.
    """

    def __init__(
        self,
        link: Link,
        leader: Leader,
        job: EngineJob,
        put: Callable[[int, Embeddings], None],
        nodes: Sequence[str],
        numbers: Iterator[int],
    ) -> None:
        self._link = link
        self._leader = leader
        self._job = job
        self._put = put
        self._nodes = nodes
        self._numbers = numbers
        self._outcome = EngineOutcome(dashboard=link.dashboard)
        self._waiting: deque[range] = deque()
        self._under_way: dict[int, range] = {}
        self._asking: dict[int, tuple[str, Any]] = {}
        self._in_hand: Counter[str] = Counter()
        self._has_put = False
        self._error: EngineError | None = None

    async def run(self) -> EngineOutcome:
        """Return when every text has a vector or an error. Raises EngineError before the first."""
        found = await self._leader.wait_fit(self._nodes)
        workers = self._chosen(found.fit)
        job = self._job
        self._waiting.extend(partitions(job.texts, job.tokens, job.predicted_seconds, len(workers)))
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, group)
                self._feed_all(group, workers)
        except BaseExceptionGroup as errors:
            # What a caller's `on_progress` raises is to arrive as it is.
            raise first_of(errors) from None
        if self._error is not None:
            if not self._has_put:
                raise self._error
            failures(self._outcome, [*self._under_way.values(), *self._waiting], self._error)
        return self._outcome

    def _chosen(self, fit: Sequence[WorkerState]) -> Sequence[WorkerState]:
        capacities = self._leader.capacities
        return taking_part(fit, sum(capacities.get(name, 0) for name in self._nodes))

    # Who works.

    async def _watch(self, group: TaskGroup) -> None:
        """Give work to workers that come, and give up if none is left."""
        lonely_at = self._leader.clock() + LONELY_SECONDS
        while True:
            try:
                await self._leader.wait_changed()
            except EngineError as error:
                self._give_up(group, error.detail)
                return
            workers = self._leader.workers
            found = fitness(workers, self._nodes)
            there = {each.name for each in workers}
            for worker, future in list(self._asking.values()):
                if worker not in there:
                    future.release()
            if found.fit:
                lonely_at = self._leader.clock() + LONELY_SECONDS
                self._feed_all(group, self._chosen(found.fit))
            elif self._leader.clock() > lonely_at:
                nobody = nobody_fit("dask", self._link.scheduler, found).detail
                self._give_up(group, nobody if found.unfit else LOST_ALL)
            if not self._link.is_up:
                self._give_up(group, f"has lost its scheduler at {self._link.scheduler}")

    @property
    def _is_over(self) -> bool:
        return not self._waiting and not self._in_hand.total()

    def _give_up(self, group: TaskGroup, why: str) -> None:
        if self._error is None:
            self._error = EngineError("dask", why)
        group.cancel_scope.cancel()

    def _feed_all(self, group: TaskGroup, workers: Sequence[WorkerState]) -> None:
        # One more for each in turn: the first ones go to different workers.
        for place in range(max((room(worker) for worker in workers), default=0)):
            for worker in workers:
                if place < room(worker) and self._in_hand[worker.name] <= place:
                    if not self._waiting:
                        return
                    self._in_hand[worker.name] += 1
                    group.start_soon(self._feed, group, worker.name, self._waiting.popleft())

    async def _feed(self, group: TaskGroup, worker: str, first: range) -> None:
        """Let a worker do one partition after another, as long as it is good for it."""
        try:
            await self._carry(group, worker, first)
            while self._waiting:
                fit = {each.name for each in fitness(self._leader.workers, self._nodes).fit}
                if worker not in fit:
                    return
                await self._carry(group, worker, self._waiting.popleft())
        finally:
            self._in_hand[worker] -= 1
            if self._is_over:
                group.cancel_scope.cancel()

    # One partition.

    async def _carry(self, group: TaskGroup, worker: str, items: range) -> None:
        """See a partition through, at another worker if this one cannot."""
        index = next(self._numbers)
        job = self._job
        texts = list(job.texts[items.start : items.stop])
        partition = Partition(index, job.settings, texts, job.planning, job.digest)
        self._under_way[index] = items
        tried = {worker}
        try:
            while True:
                answer = await self._ask(group, worker, partition, len(tried))
                other = self._other_worker(answer, tried)
                while other is None and isinstance(answer, _Lost) and len(tried) < MOST_TRIES:
                    await self._leader.wait_changed()  # `_watch` sees to it that this ends
                    other = self._other_worker(answer, tried)
                if other is None:
                    break
                tried.add(other)
                worker = other
            self._settle(items, answer)
        finally:
            begun = self._link.begun.pop(index, 1)
            self._outcome.reruns += max(0, begun - 1)
        del self._under_way[index]

    async def _ask(
        self, group: TaskGroup, worker: str, partition: Partition, attempt: int
    ) -> PartitionResult | SollolError:
        key = f"{self._link.name}-{partition.index}-{attempt}"
        future = self._link.submit(dask_worker.embed, partition, key=key, worker=worker)
        self._asking[partition.index] = worker, future
        try:
            answer: PartitionResult | SollolError = await self._link.result(future)
            return answer
        except FutureCancelled:
            if worker not in {each.name for each in self._leader.workers}:
                return _Lost("dask", f"lost worker {worker}, which had this partition")
            if self._link.is_up:
                return EngineError("dask", "had this partition cancelled by somebody else")
            self._give_up(group, f"has lost its scheduler at {self._link.scheduler}")
            await anyio.sleep_forever()  # until that comes round
            raise
        except Exception as error:  # of Dask: its words say what happened
            words = str(error) or type(error).__name__
            failed = EngineError("dask", f"could not compute a partition: {words}")
            failed.__cause__ = error
            return failed
        finally:
            del self._asking[partition.index]

    def _other_worker(self, answer: PartitionResult | SollolError, tried: set[str]) -> str | None:
        """Who is to try it again; None if the answer stands."""
        errors = answer.errors.values() if isinstance(answer, PartitionResult) else [answer]
        if len(tried) >= MOST_TRIES or not any(map(is_of_worker, errors)):
            return None
        fit = [each.name for each in fitness(self._leader.workers, self._nodes).fit]
        others = [name for name in fit if name not in tried]
        return min(others, key=lambda name: (self._in_hand[name], name), default=None)

    def _settle(self, items: range, answer: PartitionResult | SollolError) -> None:
        if isinstance(answer, _Lost):
            answer = EngineError("dask", answer.detail)
        if isinstance(answer, SollolError):
            failures(self._outcome, [items], answer)
            return
        outcome = self._outcome
        outcome.add(items.start, answer.nodes, answer.counters, answer.errors, answer.worker)
        outcome.splits += answer.splits
        outcome.copies += answer.copies
        self._has_put = True
        self._put(items.start, answer.embeddings)
