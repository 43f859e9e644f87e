"""Partitions of an engine batch: assignment to eligible workers, and retries after failures."""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import EngineOutcome
from aiosollol.core.report import NodeShare
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import (
    EngineError,
    ModelNotFound,
    NoNodeAvailable,
    PoolClosed,
    SollolError,
)

LOCAL_HINT = "addresses such as 127.0.0.1 mean the worker's own machine"
MOST_TRIES = 3
"""Workers that try a partition before it counts as failed."""


class WorkerState(NamedTuple):
    """A worker as its client knows it.

    problem: why it cannot be used; "" if it can, or is not known yet.
    up: nodes that answer it; None if it has not reported yet.
    down: nodes that do not, with the reason.
    """

    name: str
    threads: int
    problem: str = ""
    up: frozenset[str] | None = None
    down: Mapping[str, str] = {}


class Fitness(NamedTuple):
    """The eligible workers for a batch.

    fit: workers that can do it.
    unfit: reasons of those that cannot, by worker.
    is_final: whether every worker has reported on these nodes.
    """

    fit: tuple[WorkerState, ...]
    unfit: Mapping[str, str]
    is_final: bool


def fitness(workers: Iterable[WorkerState], nodes: Collection[str]) -> Fitness:
    """The `workers` that reach any of `nodes`, the nodes with the model."""
    fit, unfit, is_final = [], {}, True
    for worker in workers:
        if worker.problem:
            unfit[worker.name] = worker.problem
        elif worker.up is None:
            is_final = False
        elif worker.up.isdisjoint(nodes):
            reasons = [why for name, why in worker.down.items() if name in nodes]
            if reasons:
                unfit[worker.name] = f"reaches no node that has the model: {'; '.join(reasons)}"
            else:  # its report is older than these nodes
                unfit[worker.name] = "reaches no node that has the model: it has not tried them yet"
                is_final = False
        else:
            fit.append(worker)
    return Fitness(tuple(fit), unfit, is_final)


def taking_part(fit: Sequence[WorkerState], slots: int) -> Sequence[WorkerState]:
    """The workers that get partitions: at most one per node slot."""
    return sorted(fit)[: max(1, slots)] if len(fit) > slots else fit


def room(worker: WorkerState) -> int:
    """Partitions to assign to a worker at once: one more than it runs, so that it never idles."""
    return max(1, worker.threads) + 1


def confined(found: Fitness) -> list[str] | None:
    """Where a task may run so as to avoid unfit workers; None for anywhere.

    Hosts, so that a worker restarted there may run it; or workers, if a host also has unfit ones.
    """
    if not found.unfit:
        return None
    hosts = {host_of(each.name) for each in found.fit}
    if hosts.isdisjoint(map(host_of, found.unfit)):
        return sorted(hosts)
    return sorted(each.name for each in found.fit)


def is_within(worker: str, places: Collection[str] | None) -> bool:
    """Whether `worker` may run a task confined to `places` (see `confined`)."""
    return places is None or worker in places or host_of(worker) in places


def host_of(worker: str) -> str:
    """The host in an address such as tcp://10.0.0.2:40000."""
    return worker.partition("://")[2].rpartition(":")[0]


def nobody_fit(engine: str, scheduler: str, found: Fitness) -> EngineError:
    """The error for a batch that no worker can do."""
    if not found.unfit:
        return EngineError(
            engine, f"has no worker at {scheduler}: start one with: dask worker {scheduler}"
        )
    words = [f"worker {name} {why}" for name, why in list(found.unfit.items())[:3]]
    more = len(found.unfit) - len(words)
    text = f"has no worker that can do it: {'; '.join(words)}"
    text += f"; and {more} more" if more else ""
    hint = f" ({LOCAL_HINT})" if "reaches no node" in text else ""
    return EngineError(engine, text + hint)


def is_of_worker(error: SollolError) -> bool:
    """Whether a failure is the worker's, so that another worker may succeed."""
    return isinstance(error, NoNodeAvailable | ModelNotFound | PoolClosed | EngineError)


def failures(outcome: EngineOutcome, missing: Iterable[range], error: SollolError) -> None:
    """Record `error` for the `missing` positions of a batch."""
    for items in missing:
        outcome.errors.update(dict.fromkeys(items, error))


@dataclass(frozen=True, slots=True)
class Partition:
    """Texts for a worker, and how to embed them.

    index: unique among the partitions of a client. A retried partition gets a new one.
    digest: required digest of the model; None for any.
    """

    index: int
    settings: EmbedSettings
    texts: Sequence[str]
    planning: PlanOptions
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionResult:
    """The vectors of a partition, in order, with statistics.

    vectors: float32, `count` x `dim`.
    errors: position -> error of the texts without a vector, whose rows are NaN.
    nodes: each node's share of it.
    counters: each node's counters for this worker since the last result.
    worker: its name.
    truncated: number of texts that appear to be truncated.
    """

    vectors: Any
    dim: int
    count: int
    worker: str
    errors: Mapping[int, SollolError] = field(default_factory=dict)
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)
    counters: Mapping[str, NodeCounters] = field(default_factory=dict)
    splits: int = 0
    copies: int = 0
    truncated: int = 0

    @property
    def embeddings(self) -> Embeddings:
        return Embeddings(self.vectors, self.dim, errors=self.errors, count=self.count)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Out-of-band pickling, if the caller supports it, avoids a copy.
        vectors = pickle.PickleBuffer(self.vectors) if protocol >= 5 else bytes(self.vectors)
        rest = (
            *(self.errors, self.nodes, self.counters),
            *(self.splits, self.copies, self.truncated),
        )
        return PartitionResult, (vectors, self.dim, self.count, self.worker, *rest)


class WorkerDied(NamedTuple):
    """Takes the place of a result. has_begun: whether the worker had started the partition."""

    why: str
    has_begun: bool = True


PartitionAnswer = PartitionResult | SollolError | WorkerDied


@dataclass(slots=True, eq=False)
class PendingPartition:
    """A partition that is assigned or waits for a retry.

    index: its number in the batch.
    items: its positions in the batch.
    worker: the last worker it was assigned to.
    tries: number of times it was assigned.
    tried: names of all workers it was assigned to.
    """

    index: int
    items: range
    worker: str = ""
    tries: int = 0
    tried: set[str] = field(default_factory=set)


class PendingPartitions:
    """Assigns partitions to workers.

    cut: all partitions, in order, generated as needed.
    most_tries: workers that try a partition before it counts as failed.
    """

    def __init__(self, cut: Iterator[range], most_tries: int = MOST_TRIES) -> None:
        self._cut = cut
        self._most_tries = most_tries
        self._count = 0
        self._next = next(cut, None)
        self._again: deque[PendingPartition] = deque()
        self._out: dict[int, PendingPartition] = {}
        self._load: Counter[str] = Counter()

    @property
    def is_over(self) -> bool:
        """Whether every partition is settled."""
        return self._next is None and not self._again and not self._out

    def give(self, rooms: Mapping[str, int]) -> list[PendingPartition]:
        """Assign partitions so that each worker has as many as it has room for.

        rooms: room of each eligible worker. One without room only gets partitions to retry.
        """
        given = []
        for parcel in list(self._again):
            others = (rooms.keys() - parcel.tried) or rooms.keys()
            free = [name for name in others if self._load[name] < max(1, rooms[name])]
            if free:
                self._again.remove(parcel)
                given.append(self._hand(parcel, min(free, key=lambda n: (self._load[n], n))))
        # One per worker in turn, so that the first ones go to different workers.
        for place in range(max(rooms.values(), default=0)):
            for name, room in rooms.items():
                if self._load[name] <= place < room and self._next is not None:
                    given.append(self._hand(self._cut_next(), name))
        return given

    def _cut_next(self) -> PendingPartition:
        assert self._next is not None
        parcel = PendingPartition(self._count, self._next)
        self._next = next(self._cut, None)
        self._count += 1
        return parcel

    def _hand(self, parcel: PendingPartition, worker: str) -> PendingPartition:
        parcel.worker = worker
        parcel.tries += 1
        parcel.tried.add(worker)
        self._out[parcel.index] = parcel
        self._load[worker] += 1
        return parcel

    def answered(
        self, parcel: PendingPartition, answer: PartitionAnswer, workers: Collection[str]
    ) -> bool:
        """Record an answer. Returns whether the partition will be retried.

        workers: the eligible workers. A failed partition is retried if there is an untried one.
        """
        if isinstance(answer, WorkerDied):
            return self.lost(parcel)
        errors = answer.errors.values() if isinstance(answer, PartitionResult) else [answer]
        if any(map(is_of_worker, errors)) and not parcel.tried.issuperset(workers):
            return self.lost(parcel)
        self.settle(parcel)
        return False

    def settle(self, parcel: PendingPartition) -> None:
        """Remove a partition that is done or given up."""
        del self._out[parcel.index]
        self._load[parcel.worker] -= 1

    def lost(self, parcel: PendingPartition) -> bool:
        """Record that its worker died. Returns whether it will be retried."""
        self.settle(parcel)
        if parcel.tries >= self._most_tries:
            return False
        self._again.append(parcel)
        return True

    def left(self) -> Iterator[range]:
        """The positions of the partitions that are not settled."""
        for parcel in [*self._out.values(), *self._again]:
            yield parcel.items
        while self._next is not None:
            yield self._cut_next().items
