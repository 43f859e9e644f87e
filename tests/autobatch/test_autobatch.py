"""`AutoBatch`: documents that are submitted, their vectors, and when batches begin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from autobatch_bench import EMBED, MODEL, bench, everything, vector, vectors

from aiosollol import (
    Embeddings,
    InvalidInput,
    OllamaPool,
    UnknownJob,
)
from aiosollol.autobatch import AutoBatch
from aiosollol.testing import FakeOllama

pytestmark = pytest.mark.anyio


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
