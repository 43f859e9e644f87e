"""The start and end of a queue, and several processes on one file."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from autobatch_bench import MODEL, Bench, StubPool, bench, vector, vectors

from aiosollol import (
    PoolClosed,
)
from aiosollol.autobatch import AutoBatch, JobStatus

pytestmark = pytest.mark.anyio


# Its life.


async def test_what_is_queued_is_gone_on_with_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "queue.db"
    async with AutoBatch(None, path) as queue:
        job = await queue.submit(["one", "two"], MODEL)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["queue.db"]  # no WAL is left
    pool = StubPool()
    async with AutoBatch(pool, path) as queue:  # type: ignore[arg-type]
        assert (await queue.wait(job)).state == "completed"
        assert await vectors(queue, job) == {0: vector("one"), 1: vector("two")}


async def test_stopping_finishes_the_batch_under_way(tmp_path: Path) -> None:
    made = Bench(tmp_path / "queue.db", max_batch_size=1)
    await made.queue.start()
    await made.queue.start()  # idempotent
    await made.clock.asleep()
    made.pool.gate.clear()
    job = await made.queue.submit(["one", "two"], MODEL)
    await made.pool.entered.wait()
    closing = asyncio.create_task(made.queue.aclose())
    await asyncio.sleep(0)
    made.pool.gate.set()
    await closing
    await made.queue.aclose()
    with pytest.raises(PoolClosed, match="the queue is closed"):
        await made.queue.status()
    with pytest.raises(PoolClosed, match="was closed"):
        await made.queue.start()
    async with AutoBatch(None, made.path) as queue:
        assert (await queue.status(job)).completed == 1


async def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    made = Bench(tmp_path / "queue.db")
    await made.queue.start()
    await made.clock.asleep()
    made.pool.gate.clear()
    job = await made.queue.submit(["one"], MODEL)
    await made.pool.entered.wait()
    await made.queue.aclose(timeout=0.0)
    async with AutoBatch(None, made.path) as queue:
        assert (await queue.status(job)).queued == 1
        assert (await queue.status()).worker is None


async def test_closing_ends_even_if_its_caller_is_cancelled(tmp_path: Path) -> None:
    made = Bench(tmp_path / "queue.db")
    await made.queue.start()
    closing = asyncio.create_task(made.queue.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert made.queue._task is not None
    assert made.queue._task.done()
    assert made.queue._database is not None
    assert made.queue._database._connection is None


async def test_a_queue_that_is_not_open(tmp_path: Path) -> None:
    queue = AutoBatch(None, tmp_path / "queue.db")
    with pytest.raises(PoolClosed, match="not open yet"):
        await queue.status()
    assert repr(queue) == f"<AutoBatch new: {tmp_path / 'queue.db'}>"
    await queue.aclose()
    with pytest.raises(PoolClosed):
        await queue.start()


async def test_a_waiting_task_learns_of_the_end(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        job = await queue.submit(["one"], MODEL)
        waiting = asyncio.create_task(queue.wait(job))
        cancelled = await queue.cancel(job)
        assert (await waiting).state == cancelled.state == "cancelled"
        waiting = asyncio.create_task(queue.wait(await queue.submit(["one"], MODEL)))
    with pytest.raises(PoolClosed):
        await waiting


async def test_a_pool_that_was_closed_costs_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.pool.raises = PoolClosed("the pool is closed")
        job = await b.submit(1)
        assert (await b.queue.status(job)).queued == 1
        assert (await b.queue.status()).problem == "PoolClosed: the pool is closed"


# Several at once.


async def test_one_embeds_and_another_takes_over(tmp_path: Path) -> None:
    async with bench(tmp_path) as first, bench(tmp_path) as second:
        assert (await first.queue.status()).is_worker
        assert not (await second.queue.status()).is_worker
        job = await second.queue.submit(["one"], MODEL)  # by the process that does not embed
        await first.clock.pass_time()
        assert (await second.queue.status(job)).state == "completed"
        assert await vectors(second.queue, job) == {0: vector("one")}
        assert (first.pool.batches, second.pool.batches) == ([["one"]], [])
        await first.queue.aclose()
        job = await second.queue.submit(["two"], MODEL)
        await second.clock.asleep()
        while second.pool.batches == []:
            await second.clock.pass_time()
        assert (await second.queue.status(job)).state == "completed"
        assert (await second.queue.status()).is_worker


async def test_many_may_open_it_at_once(tmp_path: Path) -> None:
    queues = [AutoBatch(None, tmp_path / "queue.db") for _ in range(8)]
    await asyncio.gather(*(queue.start() for queue in queues))
    jobs = await asyncio.gather(*(queue.submit(["one", "two"], MODEL) for queue in queues))
    found: list[JobStatus] = [await queues[0].status(job) for job in jobs]
    assert [each.queued for each in found] == [2] * 8
    await asyncio.gather(*(queue.aclose() for queue in queues))
