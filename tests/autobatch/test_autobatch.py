"""`AutoBatch` as its user sees it: over a stub of a pool in virtual time, and over fake nodes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from aiosollol import (
    BadRequest,
    Embeddings,
    EngineError,
    InvalidInput,
    ModelNotFound,
    NoNodeAvailable,
    OllamaPool,
    PoolClosed,
    QueueFull,
    RunnerFailed,
    SollolError,
    UnknownJob,
)
from aiosollol.autobatch import AutoBatch, JobStatus, ResultPage
from aiosollol.testing import FakeModel, FakeOllama, fake_vector

pytestmark = pytest.mark.anyio

EMBED = FakeModel("nomic-embed-text", dim=16)
MODEL = "nomic-embed-text"


class Sleep(NamedTuple):
    until: float
    over: asyncio.Event
    woken: asyncio.Event


class VirtualClock:
    """Time goes on when a test says so."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.jump = 0.0  # of the wall clock
        self._sleep: Sleep | None = None
        self._fell_asleep = asyncio.Event()

    def now(self) -> float:
        return self.time + self.jump

    def monotonic(self) -> float:
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        self._sleep = Sleep(self.time + seconds, asyncio.Event(), event)
        self._fell_asleep.set()
        waits = [asyncio.create_task(each.wait()) for each in (event, self._sleep.over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sleep = None
            for task in waits:
                task.cancel()

    async def asleep(self) -> Sleep:
        """Wait until the worker waits for time to pass, having done all that it was woken for."""
        async with asyncio.timeout(30.0):  # a hang fails; nothing is measured
            while (sleep := self._sleep) is None or sleep.woken.is_set():
                self._fell_asleep.clear()
                await self._fell_asleep.wait()
        return sleep

    async def pass_time(self) -> None:
        """Let the wait of the worker end, and wait until its next."""
        sleep = await self.asleep()
        self.time = max(self.time, sleep.until)
        self._sleep = None
        sleep.over.set()
        await self.asleep()

    async def pass_until(self, time: float) -> None:
        """Let every wait end that is over by then."""
        while (await self.asleep()).until <= time:
            await self.pass_time()


class StubPool:
    """What a queue needs of a pool. `answer` says what is wrong: with a text, or with all of it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.settings: list[dict[str, Any]] = []
        self.engines: list[str] = []
        self.broken_engine = ""
        self.active = 0
        self.nodes = [SimpleNamespace(spec=SimpleNamespace(key="a:1"))]
        self.view = SimpleNamespace(having=lambda _: self.nodes)
        self.wrong: Callable[[str], SollolError | None] = lambda _: None
        self.raises: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    def get_stats(self) -> dict[str, Any]:
        return {"node_performance": {"a:1": {"active_requests": self.active}}}

    async def embed_batch(self, model: str, texts: list[str], **settings: Any) -> Embeddings:
        assert settings.pop("on_error") == "return"
        engine = settings.pop("engine")
        if engine == self.broken_engine:
            raise EngineError(engine, "has no scheduler")
        self.engines.append(engine)
        self.batches.append(texts)
        self.settings.append({"model": model, **settings})
        self.entered.set()
        await self.gate.wait()
        if self.raises is not None:
            raise self.raises
        found = {row: self.wrong(text) for row, text in enumerate(texts)}
        errors = {row: error for row, error in found.items() if error is not None}
        return Embeddings(b"".join(vector(text) for text in texts), 16, errors=errors)


def vector(text: str) -> bytes:
    return bytes(fake_vector(EMBED.digest, text, EMBED.dim))


class Bench:
    """A queue over a stub in virtual time."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = VirtualClock()
        self.pool = StubPool()
        self.path = path
        self.queue = AutoBatch(
            self.pool,  # type: ignore[arg-type]
            path,
            clock=self.clock,
            **options,
        )

    async def submit(self, count: int, model: str = MODEL, **options: Any) -> str:
        """Queue so many documents, and let the worker look at them."""
        job = await self.queue.submit([f"text {at}" for at in range(count)], model, **options)
        await self.clock.asleep()
        return job


@asynccontextmanager
async def bench(path: Path, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(path / "queue.db", **options)
    async with made.queue:
        await made.clock.asleep()
        yield made


async def everything(queue: AutoBatch, job: str, page_size: int = 256) -> list[ResultPage]:
    return [page async for page in queue.results(job, page_size=page_size)]


async def vectors(queue: AutoBatch, job: str) -> dict[int, bytes]:
    return {
        at: row.tobytes()
        for page in await everything(queue, job)
        for at, row in zip(page.indices, page.vectors, strict=True)
    }


async def errors(queue: AutoBatch, job: str) -> dict[int, str]:
    return {at: words for page in await everything(queue, job) for at, words in page.errors.items()}


# What goes in and comes out.


async def test_documents_in_vectors_out(tmp_path: Path) -> None:
    texts = [f"text {at}" for at in range(250)] + ["", "naïve 東京", "nul \0 inside", "text 0"]
    async with (
        FakeOllama(models=[EMBED]) as one,
        FakeOllama(models=[EMBED]) as two,
        OllamaPool([one.url, two.url]) as pool,
        AutoBatch(pool, tmp_path / "queue.db") as queue,
    ):
        job = await queue.submit(texts, MODEL, metadata={"source": "wiki"})
        status = await queue.wait(job)
        assert (status.state, status.total, status.completed) == ("completed", 254, 254)
        assert status.metadata == {"source": "wiki"}
        pages = await everything(queue, job, page_size=100)
        assert [len(page.indices) for page in pages] == [100, 100, 54]
        assert not any(page.errors for page in pages)
        assert await vectors(queue, job) == {at: vector(text) for at, text in enumerate(texts)}
        whole = await queue.status()
        assert (whole.job_count, whole.queued, whole.queued_bytes) == (1, 0, 0)
        assert (whole.is_worker, whole.worker, whole.problem) == (True, os.getpid(), "")
        assert whole.rate > 0.0


async def test_settings_reach_the_pool_and_part_the_batches(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await b.submit(1)
        await b.submit(1, dimensions=8, truncate=True, options={"num_ctx": 512}, keep_alive="5m")
        assert b.pool.settings == [
            {"model": MODEL},
            {
                "model": MODEL,
                "dimensions": 8,
                "truncate": True,
                "options": {"num_ctx": 512},
                "keep_alive": "5m",
            },
        ]


async def test_jobs_with_equal_settings_share_batches(tmp_path: Path) -> None:
    async with bench(tmp_path, min_batch_size=4) as b:
        first = await b.submit(2, options={"a": 1, "b": 2})
        second = await b.submit(2, options={"b": 2, "a": 1})
        assert b.pool.batches == [["text 0", "text 1"] * 2]
        assert await vectors(b.queue, first) == await vectors(b.queue, second)


@pytest.mark.parametrize(
    ("docs", "options", "words"),
    [
        ([], {}, "docs is empty"),
        ("text", {}, "texts is one string"),
        (["good", 7], {}, "item 1 must be a string, not int"),
        (["\udc80"], {}, "item 0 has a lone surrogate"),
        (["text"], {"model": ""}, "model is empty"),
        (["text"], {"dimensions": 0}, "dimensions must be a positive whole number"),
        (["text"], {"options": {"a": object()}}, "JSON"),
        (["text"], {"options": {"a": float("nan")}}, "options must contain only JSON values"),
        (["text"], {"metadata": {"a": object()}}, "metadata must contain only JSON values"),
        (["text"], {"metadata": {"a": "\udc80"}}, "metadata must contain only JSON values"),
        (["text"], {"metadata": ["a"]}, "metadata must be a mapping, not list"),
    ],
)
async def test_what_cannot_be_queued(
    tmp_path: Path, docs: Any, options: dict[str, Any], words: str
) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        with pytest.raises(InvalidInput, match=words):
            await queue.submit(docs, **{"model": MODEL, **options})
        assert (await queue.status()).job_total == 0


async def test_vectors_of_several_lengths_are_on_several_pages(tmp_path: Path) -> None:
    async with bench(tmp_path, max_batch_size=2) as b:
        real = b.pool.embed_batch

        async def embed(model: str, texts: list[str], **settings: Any) -> Embeddings:
            await real(model, texts, **settings)
            dim = 3 if len(b.pool.batches) > 1 else 2  # the model was pulled anew
            return Embeddings(bytes(4 * dim * len(texts)), dim)

        b.pool.embed_batch = embed  # type: ignore[method-assign]
        job = await b.submit(5)
        pages = await everything(b.queue, job)
        assert [(page.indices, page.vectors.dim) for page in pages] == [((0, 1), 2), ((2, 3, 4), 3)]


async def test_an_engine_computes_if_it_can_and_else_this_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidInput, match="engine must be one of"):
        AutoBatch(None, tmp_path / "queue.db", engine="spark")  # type: ignore[arg-type]
    async with bench(tmp_path, engine="dask") as b:
        await b.submit(2)
        b.pool.broken_engine = "dask"
        for _ in range(3):
            await b.submit(2)
        b.pool.broken_engine = ""
        last = await b.submit(2)
        assert b.pool.engines == ["dask", "local", "local", "local", "dask"]
        assert len(await vectors(b.queue, last)) == 2
    assert len([each for each in caplog.records if "no scheduler" in each.message]) == 1


@pytest.mark.parametrize("page_size", [0, 1.5, "1"])
async def test_a_page_has_a_size(tmp_path: Path, page_size: Any) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        with pytest.raises(InvalidInput, match="page_size must be a whole number"):
            await everything(queue, "job", page_size)


async def test_unknown_jobs(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        for call in (queue.status, queue.cancel, queue.retry, queue.wait):
            with pytest.raises(UnknownJob) as caught:
                await call("nobody")
            assert caught.value.job == "nobody"
        with pytest.raises(UnknownJob):
            await everything(queue, "nobody")


# When.


async def test_a_busy_pool_is_left_alone_for_an_interval(tmp_path: Path) -> None:
    async with bench(tmp_path, interval=60.0, max_batch_size=2) as b:
        b.pool.active = 1
        began = b.clock.time
        await b.submit(5)
        await b.clock.pass_until(began + 59.0)
        assert b.pool.batches == []
        await b.clock.pass_until(began + 60.0)
        assert b.pool.batches == [["text 0", "text 1"]]
        b.pool.active = 0  # which is seen within a second
        await b.clock.pass_until(began + 62.0)
        assert b.pool.batches == [["text 0", "text 1"], ["text 2", "text 3"], ["text 4"]]


async def test_what_is_changed_counts_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path, min_batch_size=10) as b:
        await b.submit(5)
        assert b.pool.batches == []
        with pytest.raises(InvalidInput, match="min_batch_size is 10, more than max_batch_size, 2"):
            b.queue.update(max_batch_size=2)
        b.queue.update(min_batch_size=1, max_batch_size=3)
        await b.clock.asleep()
        assert [len(batch) for batch in b.pool.batches] == [3, 2]


async def test_long_texts_make_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiosollol.autobatch.worker_queries.BATCH_BYTES", 25)
    async with bench(tmp_path) as b:
        await b.queue.submit(["ten bytes!"] * 5 + ["more than twenty-five bytes"], MODEL)
        await b.clock.asleep()
        assert [len(batch) for batch in b.pool.batches] == [2, 2, 1, 1]


# What fails.


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


async def test_a_clock_that_is_put_back_keeps_nobody_waiting(tmp_path: Path) -> None:
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


async def test_a_model_that_nobody_has_fails_after_a_while(tmp_path: Path) -> None:
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
            "autobatch: embedding failed, which is a bug: TypeError at autobatch/test_autobatch.py:"
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


# Cancelling, forgetting, quotas.


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


async def test_closing_ends_even_if_whoever_closes_is_cancelled(tmp_path: Path) -> None:
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


async def test_whoever_waits_hears_of_the_end(tmp_path: Path) -> None:
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
        job = await second.queue.submit(["one"], MODEL)  # by whoever does not embed
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
