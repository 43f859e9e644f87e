"""How the partitions of a batch reach workers: decided by `PendingPartitions`, carried by
`PartitionDispatcher`."""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import count
from typing import Any

import anyio
import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome
from aiosollol.core.offload.partitions import (
    MOST_TRIES,
    Partition,
    PartitionAnswer,
    PartitionResult,
    PendingPartition,
    PendingPartitions,
    WorkerDied,
)
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.engines.partition_dispatcher import PartitionDispatcher
from aiosollol.errors import BadRequest, EngineError, NoNodeAvailable, PoolClosed, SollolError

pytestmark = pytest.mark.anyio

OUT_OF_REACH = NoNodeAvailable("no node", {})
BAD = BadRequest("n", 400, "bad")
DIED = WorkerDied("killed")


@pytest.fixture
def anyio_backend() -> Any:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


# What is decided.


def parcels(count: int) -> PendingPartitions:
    return PendingPartitions(iter([range(n, n + 1) for n in range(count)]))


def placed(given: list[PendingPartition]) -> list[tuple[int, str]]:
    return [(each.index, each.worker) for each in given]


@pytest.mark.parametrize(
    ("partitions", "rooms", "expected"),
    [
        (5, {"a": 2, "b": 2}, [(0, "a"), (1, "b"), (2, "a"), (3, "b")]),
        (3, {"a": 1, "b": 3}, [(0, "a"), (1, "b"), (2, "b")]),
        (1, {"a": 2, "b": 2}, [(0, "a")]),
        (3, {"a": 0, "b": 1}, [(0, "b")]),
        (3, {}, []),
    ],
)
def test_each_worker_is_given_one_more_in_turn(
    partitions: int, rooms: dict[str, int], expected: list[tuple[int, str]]
) -> None:
    waiting = parcels(partitions)
    assert placed(waiting.give(rooms)) == expected
    assert waiting.give(rooms) == []


@pytest.mark.parametrize(
    ("answer", "workers", "is_again"),
    [
        (DIED, "a", True),
        (DIED, "", True),
        (OUT_OF_REACH, "ab", True),
        (OUT_OF_REACH, "a", False),
        (PartitionResult(b"", 0, 1, "a", {0: OUT_OF_REACH}), "ab", True),
        (PartitionResult(b"", 0, 1, "a", {0: BAD}), "ab", False),
        (PartitionResult(b"", 0, 1, "a"), "ab", False),
        (BAD, "ab", False),
    ],
)
def test_what_is_done_again(answer: PartitionAnswer, workers: str, is_again: bool) -> None:
    waiting = parcels(1)
    (first,) = waiting.give({"a": 1})
    assert waiting.answered(first, answer, set(workers)) is is_again
    assert waiting.is_over is not is_again


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ({"a": 1, "b": 1}, "b"),  # one that has not tried it
        ({"a": 1, "b": 0}, "b"),  # even if it takes no part otherwise
        ({"a": 1}, "a"),  # or else any
        ({}, None),
    ],
)
def test_where_it_is_done_again(rooms: dict[str, int], expected: str | None) -> None:
    waiting = parcels(1)
    (first,) = waiting.give({"a": 1})
    waiting.answered(first, DIED, rooms)
    assert [each.worker for each in waiting.give(rooms)] == ([expected] if expected else [])


@given(st.integers(0, 12), st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), st.data())
def test_every_partition_is_settled_once(
    partitions: int, rooms: dict[str, int], data: st.DataObject
) -> None:
    waiting = parcels(partitions)
    under_way: list[PendingPartition] = []
    tries: Counter[int] = Counter()
    settled = []
    while not waiting.is_over:
        given = waiting.give(rooms)
        tries.update(each.index for each in given)
        under_way += given
        load = Counter(each.worker for each in under_way)
        assert all(load[name] <= max(1, rooms[name]) for name in load)
        if not under_way:
            assert not any(rooms.values())
            break
        parcel = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
        answer = data.draw(st.sampled_from([DIED, OUT_OF_REACH, BAD]))
        if not waiting.answered(parcel, answer, rooms):
            settled.append(parcel.index)
    left = [item for items in waiting.left() for item in items]
    assert sorted(settled + left) == list(range(partitions))
    assert max(tries.values(), default=0) <= MOST_TRIES


# How it is carried out.


class Workers:
    """A `WorkerLink` to workers that take a second for each partition.

    told: worker -> what it answers to its next partitions, in place of vectors. lost: raised once
    the engine is lost. hopeless: raised once no worker is to be expected any more.
    """

    engine = "fake"

    def __init__(self, **rooms: int) -> None:
        self.all_rooms = dict(rooms)
        self.dead: set[str] = set()
        self.told: dict[str, list[PartitionAnswer]] = {}
        self.lost: SollolError | None = None
        self.hopeless: EngineError | None = None
        self.given: list[tuple[str, int]] = []
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.recovered: list[float] = []

    def rooms(self) -> dict[str, int]:
        return {name: room for name, room in self.all_rooms.items() if name not in self.dead}

    async def wait_changed(self) -> None:
        await anyio.sleep(0.1)
        if self.hopeless is not None:
            raise self.hopeless

    async def embed(self, worker: str, partition: Partition) -> PartitionAnswer:
        self.given.append((worker, partition.index))
        self.under_way[worker] += 1
        self.most[worker] = max(self.most[worker], self.under_way[worker])
        await anyio.sleep(1.0)
        self.under_way[worker] -= 1
        if self.told.get(worker):
            answer = self.told[worker].pop(0)
            if isinstance(answer, WorkerDied):
                self.dead.add(worker)
            return answer
        if self.lost is not None:
            raise self.lost
        vectors = array("f", [float(text) for text in partition.texts])
        return PartitionResult(memoryview(vectors).cast("B"), 1, len(vectors), worker)

    async def recover(self, worker: str) -> None:
        await anyio.sleep(5.0)
        self.recovered.append(anyio.current_time())
        self.dead.discard(worker)


class Batch:
    """A batch of `texts` numbers, each its own vector, in partitions of 32."""

    def __init__(self, workers: Workers, texts: int) -> None:
        self.workers = workers
        self.vectors: dict[int, float] = {}
        self.texts = [str(number) for number in range(texts)]

    def put(self, start: int, embeddings: Embeddings) -> None:
        for row, vector in enumerate(embeddings):
            assert start + row not in self.vectors
            self.vectors[start + row] = vector[0]

    async def run(self, put: Any = None) -> EngineOutcome:
        settings = EmbedSettings(model="m")
        job = EngineJob(settings, self.texts, [1.0] * len(self.texts), PlanOptions(), 1e9, 60.0)
        return await PartitionDispatcher(
            self.workers, job, put or self.put, count(7), "http://d"
        ).run()

    @property
    def is_whole(self) -> bool:
        return self.vectors == {number: float(number) for number in range(len(self.texts))}


async def test_a_batch_is_spread_over_all_workers_within_their_room() -> None:
    workers = Workers(a=2, b=1)
    batch = Batch(workers, 32 * 9)
    began = anyio.current_time()
    outcome = await batch.run()
    assert batch.is_whole
    assert anyio.current_time() - began == pytest.approx(3.0)
    assert workers.most == {"a": 2, "b": 1}
    assert len({index for _, index in workers.given}) == 9
    assert (outcome.reruns, outcome.errors, outcome.workers) == (0, {}, {"a", "b"})
    assert outcome.dashboard == "http://d"


async def test_no_text_is_no_work() -> None:
    assert (await Batch(Workers(a=1), 0).run()).workers == set()


async def test_a_worker_that_comes_takes_part() -> None:
    workers = Workers(a=1)
    batch = Batch(workers, 32 * 4)
    async with anyio.create_task_group() as group:
        group.start_soon(batch.run)
        await anyio.sleep(0.5)
        workers.all_rooms["b"] = 1
        await anyio.sleep(10.0)
    assert batch.is_whole
    assert {name for name, _ in workers.given} == {"a", "b"}


@pytest.mark.parametrize("has_begun", [True, False])
async def test_what_a_dead_worker_had_is_done_by_others(has_begun: bool) -> None:
    workers = Workers(a=2, b=2)
    workers.told = {"a": [WorkerDied("killed", has_begun)] * 2}
    batch = Batch(workers, 32 * 8)
    outcome = await batch.run()
    assert batch.is_whole
    assert outcome.reruns == 2 * has_begun
    assert len({index for _, index in workers.given}) == 10  # each try is a partition of its own
    assert len(workers.recovered) == 2


async def test_the_only_worker_is_given_it_again_when_it_has_come_back() -> None:
    workers = Workers(a=2)
    workers.told = {"a": [DIED]}
    batch = Batch(workers, 32)
    began = anyio.current_time()
    assert (await batch.run()).reruns == 1
    assert batch.is_whole
    assert anyio.current_time() - began == pytest.approx(7.0)


async def test_a_partition_that_kills_its_workers_is_given_up() -> None:
    workers = Workers(a=1, b=1, c=1, d=1)
    workers.told = {name: [DIED] for name in "abcd"}
    outcome = await Batch(workers, 32).run()
    assert len(workers.given) == MOST_TRIES
    assert outcome.reruns == MOST_TRIES - 1
    assert set(outcome.errors) == set(range(32))
    assert str(outcome.errors[0]) == "fake lost 3 workers on this partition: killed"


async def test_what_one_worker_cannot_do_another_is_given() -> None:
    workers = Workers(a=1, b=0)
    workers.told = {"a": [OUT_OF_REACH]}
    batch = Batch(workers, 64)
    outcome = await batch.run()
    assert batch.is_whole
    assert [name for name, _ in workers.given].count("b") == 1
    assert outcome.reruns == 1


async def test_the_error_of_all_of_them_stands() -> None:
    workers = Workers(a=1, b=1)
    workers.told = {"a": [OUT_OF_REACH], "b": [OUT_OF_REACH]}
    outcome = await Batch(workers, 32).run()
    assert len(workers.given) == 2
    assert set(outcome.errors.values()) == {OUT_OF_REACH}


async def test_without_hope_of_a_worker_a_batch_has_failed() -> None:
    workers = Workers(a=1)
    workers.told = {"a": [DIED]}
    workers.hopeless = EngineError("fake", "was closed")
    with pytest.raises(EngineError, match="was closed"):
        await Batch(workers, 32).run()


@pytest.mark.parametrize("error", [EngineError("fake", "lost"), PoolClosed("lost")])
async def test_what_was_done_before_the_engine_is_lost_is_kept(error: SollolError) -> None:
    workers = Workers(a=1)
    batch = Batch(workers, 96)

    def put(start: int, embeddings: Embeddings) -> None:
        batch.put(start, embeddings)
        workers.lost = error

    outcome = await batch.run(put)
    assert set(batch.vectors) == set(range(32))
    assert outcome.errors == dict.fromkeys(range(32, 96), error)


async def test_what_a_callback_raises_arrives_as_it_is() -> None:
    def put(start: int, embeddings: Embeddings) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        await Batch(Workers(a=1), 32).run(put)
