"""Failures in a queue: documents, nodes and models that fail, and errors of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
from autobatch_bench import MODEL, bench, errors, vectors

from aiosollol import (
    BadRequest,
    ModelNotFound,
    NoNodeAvailable,
    RunnerFailed,
)

pytestmark = pytest.mark.anyio


async def test_a_bad_document_fails_alone_and_can_be_tried_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.pool.wrong = lambda text: BadRequest("a", 400, "bad") if text == "text 1" else None
        job = await b.submit(3)
        assert (await b.queue.status(job)).state == "completed"
        assert await errors(b.queue, job) == {1: "BadRequest: a: bad (status 400)"}
        assert sorted(await vectors(b.queue, job)) == [0, 2]
        b.pool.wrong = lambda _: None
        assert await b.queue.retry(job) == 1
        await b.clock.asleep()
        assert b.pool.batches == [["text 0", "text 1", "text 2"], ["text 1"]]
        assert sorted(await vectors(b.queue, job)) == [0, 1, 2]
        assert await b.queue.retry(job) == 0
        status = await b.queue.status(job)
        assert (status.completed, status.failed, status.queued) == (3, 0, 0)


async def test_a_crash_is_tried_a_few_times_and_later_each_time(tmp_path: Path) -> None:
    async with bench(tmp_path, max_attempts=3) as b:
        b.pool.wrong = lambda text: RunnerFailed("a", 500, "NaN") if text == "text 1" else None
        began = b.clock.time
        job = await b.submit(2)
        assert (await b.queue.status(job)).state == "running"
        tries = [len(b.pool.batches)]
        for seconds in (4, 5, 14, 15, 400):
            await b.clock.pass_until(began + seconds)
            tries.append(len(b.pool.batches))
        assert tries == [1, 1, 2, 2, 3, 3]  # at 0, 5 and 15 s
        assert await errors(b.queue, job) == {
            1: "RunnerFailed: a: NaN (status 500) (tried 3 times)"
        }


async def test_a_clock_that_is_put_back_delays_no_job(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.pool.wrong = lambda text: RunnerFailed("a", 500, "NaN") if text == "text 1" else None
        job = await b.submit(2)
        b.clock.jump = -100_000.0
        b.pool.wrong = lambda _: None
        await b.clock.pass_time()
        assert (await b.queue.status(job)).state == "completed"


async def test_documents_wait_for_nodes_that_are_down(tmp_path: Path) -> None:
    async with bench(tmp_path, max_attempts=1) as b:
        b.pool.raises = NoNodeAvailable("no node answers", {})
        began = b.clock.time
        job = await b.submit(3)
        await b.clock.pass_until(began + 300.0)
        times = len(b.pool.batches)
        assert times == 14  # at 0, 1, 3, 7, 15, 31, and every 30 s then
        status = await b.queue.status(job)
        assert (status.queued, status.failed) == (3, 0)
        assert (await b.queue.status()).problem == "NoNodeAvailable: no node answers"
        b.pool.raises = None
        await b.clock.pass_until(began + 331.0)
        assert (await b.queue.status(job)).state == "completed"
        assert (await b.queue.status()).problem == ""


async def test_a_model_that_no_node_has_fails_after_a_while(tmp_path: Path) -> None:
    async with bench(tmp_path, max_batch_size=2, max_attempts=3) as b:
        b.pool.raises = ModelNotFound(MODEL, {"a": []})
        began = b.clock.time
        job = await b.submit(5)
        await b.clock.pass_until(began + 14.0)
        assert (await b.queue.status(job)).queued == 5
        await b.clock.pass_until(began + 15.0)
        status = await b.queue.status(job)
        assert (status.state, status.failed) == ("failed", 5)
        found = await errors(b.queue, job)
        assert sorted(found) == [0, 1, 2, 3, 4]
        assert "no node has the model" in found[4]
        assert len(b.pool.batches) == 3
        b.pool.raises = None
        assert await b.queue.retry(job) == 5
        await b.clock.asleep()
        assert (await b.queue.status(job)).completed == 5


async def test_a_mistake_of_ours_does_not_end_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path, max_attempts=2) as b:
        b.pool.raises = TypeError("a mistake")
        job = await b.submit(1)
        (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
        said = (
            "autobatch: embedding failed, which is a bug: TypeError at support/autobatch_bench.py:"
        )
        assert record.getMessage().startswith(said)
        assert "a mistake" not in caplog.text  # it may quote a document
        await b.clock.pass_until(b.clock.time + 6.0)
        assert await errors(b.queue, job) == {0: "TypeError: a mistake (tried 2 times)"}
        b.pool.raises = None
        assert (await b.queue.status(await b.submit(1))).state == "completed"


async def test_the_log_of_a_queue_that_waits_has_no_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as b:
        failed = RunnerFailed("a", 500, "cannot embed 'my secret document'")
        b.pool.raises = NoNodeAvailable("all failed", {"a": failed.detail}, [failed])
        await b.submit(1)
        assert caplog.messages == [
            "autobatch: NoNodeAvailable: all failed; a: RunnerFailed (status 500)"
        ]
