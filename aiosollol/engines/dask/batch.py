"""`DaskWorkers`: the Dask workers of one batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from typing import Any

from aiosollol.core.offload.partitions import (
    Partition,
    PartitionAnswer,
    WorkerDied,
    fitness,
    nobody_fit,
    room,
    taking_part,
)
from aiosollol.engines.dask import worker as dask_worker
from aiosollol.engines.dask.link import DaskLink
from aiosollol.engines.lease_leader import LeaseLeader
from aiosollol.errors import EngineError

LONELY_SECONDS = 30.0
"""How long a batch waits for a worker to return when all are lost."""
LOST_ALL = f"has lost all its workers, and none returned within {LONELY_SECONDS:g} s"


class WorkerWatch:
    """Checks that a batch still has workers and a scheduler.

    nodes: returns the names of the nodes that have the model.
    is_usable: whether a worker, by name, that reaches any of them can be used for the batch.
    """

    def __init__(
        self,
        link: DaskLink,
        leader: LeaseLeader,
        nodes: Callable[[], Collection[str]],
        is_usable: Callable[[str], bool] = bool,
    ) -> None:
        self._link = link
        self._leader = leader
        self._nodes = nodes
        self._is_usable = is_usable
        self._seen_at = leader.clock()

    async def wait_changed(self) -> None:
        """Return after the next exchange with the workers. Raises EngineError if none is left."""
        leader, link = self._leader, self._link
        await leader.wait_changed()
        if not link.is_up:
            raise scheduler_lost(link)
        found = fitness(leader.workers, self._nodes())
        if any(self._is_usable(each.name) for each in found.fit):
            self._seen_at = leader.clock()
        elif leader.clock() > self._seen_at + LONELY_SECONDS:
            if found.unfit and not found.fit:
                raise nobody_fit("dask", link.scheduler, found)
            raise EngineError("dask", LOST_ALL)


def scheduler_lost(link: DaskLink) -> EngineError:
    return EngineError("dask", f"has lost its scheduler at {link.scheduler}")


class DaskWorkers:
    """A `ports.WorkerLink`. Make one within `LeaseLeader.leading`, after `LeaseLeader.wait_fit`.

    nodes: names of the nodes that have the model.
    """

    engine = "dask"

    def __init__(self, link: DaskLink, leader: LeaseLeader, nodes: Collection[str]) -> None:
        self._link = link
        self._leader = leader
        self._nodes = nodes
        self._watch = WorkerWatch(link, leader, lambda: nodes)
        self._asking: dict[int, tuple[str, Any]] = {}

    def rooms(self) -> Mapping[str, int]:
        fit = fitness(self._leader.workers, self._nodes).fit
        slots = sum(self._leader.capacities.get(name, 0) for name in self._nodes)
        part = {each.name for each in taking_part(fit, slots)}
        return {each.name: room(each) if each.name in part else 0 for each in fit}

    async def wait_changed(self) -> None:
        await self._watch.wait_changed()
        there = self._there()
        for worker, future in list(self._asking.values()):
            if worker not in there:
                future.release()

    def _there(self) -> set[str]:
        return {each.name for each in self._leader.workers}

    async def embed(self, worker: str, partition: Partition) -> PartitionAnswer:
        link, index = self._link, partition.index
        key = f"{link.name}-{index}"
        future = link.submit(dask_worker.embed, partition, key=key, worker=worker)
        self._asking[index] = worker, future
        try:
            answer: PartitionAnswer = await link.result(future)
            return answer
        except FutureCancelled:
            if worker not in self._there():
                why = f"lost worker {worker}, which had this partition"
                return WorkerDied(why, has_begun=link.begun[index] > 0)
            if link.is_up:
                return EngineError("dask", "had this partition cancelled by another client")
            raise scheduler_lost(link) from None
        except Exception as error:  # an error of Dask
            words = str(error) or type(error).__name__
            failed = EngineError("dask", f"could not compute a partition: {words}")
            failed.__cause__ = error
            return failed
        finally:
            del self._asking[index]
            link.begun.pop(index, None)

    async def recover(self, worker: str) -> None:
        """Does nothing: a restarted worker has another address."""
