"""The partitions of a batch: which worker is given which, and which are done again."""

from __future__ import annotations

import pickle
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.planner import PlanOptions
from aiosollol.core.report import NodeShare
from aiosollol.core.request import EmbedSettings
from aiosollol.core.stats import NodeCounters
from aiosollol.core.workers import MOST_TRIES, is_of_worker
from aiosollol.errors import SollolError


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
