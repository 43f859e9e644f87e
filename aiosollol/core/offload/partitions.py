"""Partitions of a batch: which workers can do one, which gets it, and again after a worker died."""

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
"""Workers that are given a partition before its failure counts."""


class WorkerState(NamedTuple):
    """A worker as its client knows it. problem: why it is of no use, "" if it is or may be.

    up: the nodes that answer it, None if it has not told yet. down: those that do not, with why.
    """

    name: str
    threads: int
    problem: str = ""
    up: frozenset[str] | None = None
    down: Mapping[str, str] = {}


class Fitness(NamedTuple):
    """fit: the workers for a batch. unfit: worker -> why it is none. is_final: whether all have
    told how they are."""

    fit: tuple[WorkerState, ...]
    unfit: Mapping[str, str]
    is_final: bool


def fitness(workers: Iterable[WorkerState], nodes: Collection[str]) -> Fitness:
    """Who of `workers` reaches any of `nodes`, those that have the model."""
    fit, unfit, is_final = [], {}, True
    for worker in workers:
        if worker.problem:
            unfit[worker.name] = worker.problem
        elif worker.up is None:
            is_final = False
        elif worker.up.isdisjoint(nodes):
            reasons = [why for name, why in worker.down.items() if name in nodes]
            unfit[worker.name] = f"reaches no node that has the model: {'; '.join(reasons)}"
        else:
            fit.append(worker)
    return Fitness(tuple(fit), unfit, is_final)


def taking_part(fit: Sequence[WorkerState], slots: int) -> Sequence[WorkerState]:
    """Those that are given partitions: no more than can have a slot of a node at once."""
    return sorted(fit)[: max(1, slots)] if len(fit) > slots else fit


def room(worker: WorkerState) -> int:
    """How many partitions a worker has in hand: one waits, so that none waits for the client."""
    return max(1, worker.threads) + 1


def confined(found: Fitness) -> list[str] | None:
    """Where a task may run that is not to come to an unfit worker; None for anywhere.

    Hosts, so that a worker that is started again there may have it; or the workers themselves,
    where a host has others that are unfit.
    """
    if not found.unfit:
        return None
    hosts = {host_of(each.name) for each in found.fit}
    if hosts.isdisjoint(map(host_of, found.unfit)):
        return sorted(hosts)
    return sorted(each.name for each in found.fit)


def is_within(worker: str, places: Collection[str] | None) -> bool:
    """Whether `worker` is where a task may run, see `confined`."""
    return places is None or worker in places or host_of(worker) in places


def host_of(worker: str) -> str:
    """The host in an address such as tcp://10.0.0.2:40000."""
    return worker.partition("://")[2].rpartition(":")[0]


def nobody_fit(engine: str, scheduler: str, found: Fitness) -> EngineError:
    """Why no worker can do a batch."""
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
    """Whether a failure is one of the worker, so that another may do better."""
    return isinstance(error, NoNodeAvailable | ModelNotFound | PoolClosed | EngineError)


def failures(outcome: EngineOutcome, missing: Iterable[range], error: SollolError) -> None:
    """What is `missing` of a batch has failed, with `error`."""
    for items in missing:
        outcome.errors.update(dict.fromkeys(items, error))


@dataclass(frozen=True, slots=True)
class Partition:
    """Texts for a worker, and how to embed them.

    index: unique among the partitions of a client. A partition done again has another one.
    digest: that nodes must have of the model, None for any.
    """

    index: int
    settings: EmbedSettings
    texts: Sequence[str]
    planning: PlanOptions
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class PartitionResult:
    """The vectors of a partition, in order, and what it took.

    vectors: float32, `count` x `dim`.
    errors: position -> error of the texts without a vector, whose rows are NaN.
    nodes: what each node did for it.
    counters: what each node did for this worker since the last result.
    worker: its name.
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

    @property
    def embeddings(self) -> Embeddings:
        return Embeddings(self.vectors, self.dim, errors=self.errors, count=self.count)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Out of band, where whoever pickles this takes buffers by themselves: without a copy.
        vectors = pickle.PickleBuffer(self.vectors) if protocol >= 5 else bytes(self.vectors)
        rest = (self.errors, self.nodes, self.counters, self.splits, self.copies)
        return PartitionResult, (vectors, self.dim, self.count, self.worker, *rest)


class WorkerDied(NamedTuple):
    """In place of a result. has_begun: whether the worker had begun with the partition."""

    why: str
    has_begun: bool = True


PartitionAnswer = PartitionResult | SollolError | WorkerDied


@dataclass(slots=True, eq=False)
class PendingPartition:
    """A partition on its way. index: its number in the batch. tries: workers that were given it,
    `worker` the last of them, `tried` all by name."""

    index: int
    items: range
    worker: str = ""
    tries: int = 0
    tried: set[str] = field(default_factory=set)


class PendingPartitions:
    """Decides which partition goes to which worker.

    cut: all partitions, in order; made as they are needed.
    most_tries: workers that are given one before its failure counts.
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
        """What to give to workers now, so that each has as many partitions as it has room for.

        rooms: of all workers that can do the batch. One without room is given nothing but what
        others have failed at.
        """
        given = []
        for parcel in list(self._again):
            others = (rooms.keys() - parcel.tried) or rooms.keys()
            free = [name for name in others if self._load[name] < max(1, rooms[name])]
            if free:
                self._again.remove(parcel)
                given.append(self._hand(parcel, min(free, key=lambda n: (self._load[n], n))))
        # One more for each in turn: the first ones go to different workers.
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
        """A worker has answered. Returns whether the partition is to be done again.

        workers: that can do the batch. What failed at one is done again if there is another.
        """
        if isinstance(answer, WorkerDied):
            return self.lost(parcel)
        errors = answer.errors.values() if isinstance(answer, PartitionResult) else [answer]
        if any(map(is_of_worker, errors)) and not parcel.tried.issuperset(workers):
            return self.lost(parcel)
        self.settle(parcel)
        return False

    def settle(self, parcel: PendingPartition) -> None:
        """It is done, or is given up."""
        del self._out[parcel.index]
        self._load[parcel.worker] -= 1

    def lost(self, parcel: PendingPartition) -> bool:
        """A worker died over it. Returns whether it is to be done again."""
        self.settle(parcel)
        if parcel.tries >= self._most_tries:
            return False
        self._again.append(parcel)
        return True

    def left(self) -> Iterator[range]:
        """What is not settled."""
        for parcel in [*self._out.values(), *self._again]:
            yield parcel.items
        while self._next is not None:
            yield self._cut_next().items
