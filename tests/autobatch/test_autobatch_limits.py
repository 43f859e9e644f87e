"""Jobs that are cancelled or expire, and the limits of a queue."""

from __future__ import annotations

from pathlib import Path

import pytest
from autobatch_bench import MODEL, bench, everything, vectors

from aiosollol import (
    BadRequest,
    InvalidInput,
    QueueFull,
    UnknownJob,
)

pytestmark = pytest.mark.anyio


async def test_cancelling_drops_what_is_queued(tmp_path: Path) -> None:
    async with bench(tmp_path, max_batch_size=2) as b:
        b.pool.active = 1
        job = await b.submit(5)
        other = await b.submit(1)
        await b.clock.pass_until(b.clock.time + 60.0)
        status = await b.queue.cancel(job)
        assert (status.state, status.completed, status.queued) == ("cancelled", 2, 0)
        assert (await b.queue.cancel(job)) == status  # again, without effect
        assert sorted(await vectors(b.queue, job)) == [0, 1]
        with pytest.raises(InvalidInput, match="was cancelled"):
            await b.queue.retry(job)
        b.pool.active = 0
        await b.clock.asleep()
        await b.clock.pass_time()
        assert (await b.queue.status(other)).state == "completed"
        assert [len(batch) for batch in b.pool.batches] == [2, 1]


async def test_cancelling_during_a_batch_stores_nothing_of_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.pool.gate.clear()
        job = await b.queue.submit(["text"], MODEL)
        await b.pool.entered.wait()
        assert (await b.queue.cancel(job)).state == "cancelled"
        b.pool.gate.set()
        await b.clock.asleep()
        assert await everything(b.queue, job) == []
        assert (await b.queue.status(job)).completed == 0


async def test_results_are_kept_for_a_time(tmp_path: Path) -> None:
    async with bench(tmp_path, keep_results=3600.0) as b:
        job = await b.submit(3)
        await b.clock.pass_until(b.clock.time + 3590.0)
        status = await b.queue.status(job)
        assert status.completed_at is not None
        assert status.expires_at == status.completed_at + 3600.0
        later = await b.submit(1)
        await b.clock.pass_until(b.clock.time + 80.0)
        with pytest.raises(UnknownJob):
            await b.queue.status(job)
        assert (await b.queue.status(later)).completed == 1
        assert await b.queue._open_database().read(
            lambda c: c.execute("SELECT count(*) FROM vectors").fetchone()
        ) == (1,)


async def test_clearing_away_is_done_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosollol.autobatch.worker_queries._SWEPT", 2)
    async with bench(tmp_path, keep_results=10.0) as b:
        b.pool.wrong = lambda text: BadRequest("a", 400, "bad") if text == "text 1" else None
        await b.submit(9)
        await b.clock.pass_until(b.clock.time + 30.0)
        left = await b.queue._open_database().read(
            lambda c: [
                c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("jobs", "documents", "vectors", "expired", "groups")
            ]
        )
        assert left == [0, 0, 0, 0, 0]


async def test_quotas(tmp_path: Path) -> None:
    async with bench(tmp_path, max_documents=10, max_bytes=100, min_batch_size=50) as b:
        b.pool.active = 1
        await b.submit(8)
        with pytest.raises(QueueFull, match="8 documents of 48 bytes are queued") as caught:
            await b.queue.submit(["a", "b", "c"], MODEL)
        assert caught.value.retry_after == 60.0
        with pytest.raises(QueueFull) as caught:
            await b.queue.submit(["x" * 53], MODEL)
        assert caught.value.retry_after == 60.0
        for docs in (["x"] * 11, ["x" * 101]):
            with pytest.raises(InvalidInput, match="exceed the limits of the queue"):
                await b.queue.submit(docs, MODEL)
        assert (await b.queue.status()).job_count == 1
        await b.submit(2)
        await b.clock.pass_until(b.clock.time + 60.0)
        await b.submit(10)


async def test_quotas_count_what_is_tried_again(tmp_path: Path) -> None:
    async with bench(tmp_path, max_documents=3) as b:
        b.pool.wrong = lambda _: BadRequest("a", 400, "bad")
        job = await b.submit(2)
        b.pool.active = 1
        await b.submit(2)
        with pytest.raises(QueueFull):
            await b.queue.retry(job)
        assert (await b.queue.status(job)).failed == 2
