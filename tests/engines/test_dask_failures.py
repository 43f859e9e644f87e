"""Batches on real Dask when workers, schedulers or settings fail."""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
import re
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dask_parts import (
    CUT_OFF,
    HIDDEN,
    MODEL,
    NAME,
    OLD,
    OTHER_PYTHON,
    need,
    report_of,
    scheduler,
    until,
    vector,
    worker,
)

need("distributed", "pyarrow")

from dask import bag  # noqa: E402 (what follows `need`)

from aiosollol import InvalidInput, OllamaPool, __version__  # noqa: E402
from aiosollol.engines import lease_leader  # noqa: E402
from aiosollol.engines.dask import link as dask_link  # noqa: E402
from aiosollol.engines.dask import worker as dask_worker  # noqa: E402
from aiosollol.errors import EngineError  # noqa: E402
from aiosollol.testing import FakeOllama, FakeOllamaProcess  # noqa: E402

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def cluster(anyio_backend: str) -> AsyncIterator[str]:
    """The address of a scheduler with two workers, for tests that leave them as they are."""
    async with scheduler(2) as address:
        yield address


async def test_200_000_passages_and_a_worker_that_is_killed() -> None:
    texts = [f"passage number {index}" for index in range(200_000)]
    async with (
        FakeOllamaProcess(models=[MODEL], slots=2) as one,
        FakeOllamaProcess(models=[MODEL], slots=2) as two,
        scheduler(2) as address,
        OllamaPool(
            [one.url, two.url], enable_dask=True, dask_address=address, same_machine="share"
        ) as pool,
    ):
        await pool.embed_batch(NAME, ["first"], engine="dask")
        link: Any = pool._engine_batches._engines["dask"]._session.link  # type: ignore[attr-defined]
        workers = await link.client.run(os.getpid)
        doomed = next(iter(workers.values()))

        def kill(settled: int, _: int) -> None:
            nonlocal doomed
            if settled > 60_000 and doomed:
                os.kill(doomed, signal.SIGKILL)
                doomed = 0

        embeddings = await pool.embed_batch(NAME, texts, engine="dask", on_progress=kill)
        assert doomed == 0
        assert not embeddings.errors
        for text, each in zip(texts, embeddings, strict=True):
            assert each.tobytes() == vector(text)
        note = report_of(embeddings).engine
        assert note.reruns <= 3  # what it had in hand
        assert note.workers >= 2


async def test_a_worker_that_dies_costs_its_partitions_a_rerun() -> None:
    texts = [f"passage number {index}" for index in range(600)]
    async with (
        FakeOllama(models=[MODEL], slots=2, seconds_per_item=0.005) as node,
        scheduler(2) as address,
        OllamaPool([node.url], enable_dask=True, dask_address=address) as pool,
    ):
        await pool.embed_batch(NAME, ["first"], engine="dask")
        link: Any = pool._engine_batches._engines["dask"]._session.link  # type: ignore[attr-defined]
        doomed = [*(await link.client.run(os.getpid)).values()][:1]

        def kill(*_: int) -> None:  # the node is slow: both have always something under way
            while doomed:
                os.kill(doomed.pop(), signal.SIGKILL)

        embeddings = await pool.embed_batch(NAME, texts, engine="dask", on_progress=kill)
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]
        assert 1 <= report_of(embeddings).engine.reruns <= 3
        assert node.max_in_flight <= 2


async def test_a_cluster_that_dies_and_the_next_batch(tmp_path: pathlib.Path) -> None:
    """Its own cluster, started by the pool: the batch under way fails, the next has a new one."""
    texts = [f"passage {index}" for index in range(1000)]
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_workers=1) as pool,
    ):
        engine: Any = pool._engine_batches._engines["dask"]
        assert engine.start_seconds > 0
        embeddings = await pool.embed_batch(NAME, texts, engine="dask")
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]
        assert engine.start_seconds == 0.0
        node.seconds_per_item = 1000.0
        batch = asyncio.create_task(pool.embed_batch(NAME, texts, engine="dask", on_error="return"))
        await until(lambda: node.in_flight)
        os.kill(engine._session.cluster.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="lost its scheduler"):
            await batch
        await until(lambda: node.in_flight == 0)  # its workers are gone as well
        node.seconds_per_item = 0.0
        embeddings = await pool.embed_batch(NAME, texts, engine="dask")
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]


async def test_no_scheduler(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_link, "CONNECT_SECONDS", 0.5)
    address = f"tcp://127.0.0.1:{unused_port}"
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=address, dask_threshold=1) as pool,
    ):
        engine: Any = pool._engine_batches._engines["dask"]
        with pytest.raises(EngineError, match=f"{address}.*dask scheduler"):
            await pool.embed_batch(NAME, ["a"], engine="dask")
        engine._start_seconds = 0.0
        embeddings = await pool.embed_batch(NAME, ["a"])
        assert embeddings[0].tobytes() == vector("a")
        assert "no scheduler" in report_of(embeddings).engine.reason


async def test_an_address_that_is_none() -> None:
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address="nonsense://x y") as pool,
    ):
        with pytest.raises(EngineError, match="nonsense"):
            await pool.embed_batch(NAME, ["a"], engine="dask")


async def test_workers_that_are_of_no_use_are_named(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"passage {index}" for index in range(200)]
    async with (
        FakeOllama(models=[MODEL]) as node,
        scheduler(0) as address,
        OllamaPool([node.url], enable_dask=True, dask_address=address) as pool,
    ):

        async def failure() -> str:
            with pytest.raises(EngineError) as caught:
                await pool.embed_batch(NAME, texts, engine="dask")
            return str(caught.value)

        port = node.url.rpartition(":")[2]
        async with worker(address, tmp_path / "a", HIDDEN):
            assert "does not have aiosollol: install version" in await failure()
        async with worker(address, tmp_path / "b", OTHER_PYTHON):
            assert "has Python 3.9.1, and this program 3." in await failure()
        async with (
            worker(address, tmp_path / "c", OLD),
            worker(address, tmp_path / "d", CUT_OFF, CUT_OFF=port),
        ):
            words = await failure()
            assert f"has aiosollol 0.0.1, and this program {__version__}" in words
            assert re.search(f"reaches no node that has the model: .*refused.*{node.url}", words)
            assert "127.0.0.1 mean the worker's own machine" in words
            async with worker(address, tmp_path / "e"):
                embeddings = await pool.embed_batch(NAME, texts, engine="dask")
                expected = [vector(text) for text in texts]
                assert [each.tobytes() for each in embeddings] == expected
                assert report_of(embeddings).engine.workers == 1
                await pool.embed_batch(NAME, texts, engine="dask")
                lines = bag.from_sequence(texts, npartitions=8)
                written = await pool.embed_bag(NAME, lines, tmp_path / "out")
                assert written.rows == 200
        assert len([each for each in caplog.messages if "is not used" in each]) == 2


async def test_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_leader, "FIT_SECONDS", 0.5)
    async with (
        FakeOllama(models=[MODEL]) as node,
        scheduler(0) as address,
        OllamaPool([node.url], enable_dask=True, dask_address=address) as pool,
    ):
        with pytest.raises(EngineError, match=f"start one with: dask worker {address}"):
            await pool.embed_batch(NAME, ["a"], engine="dask")


async def test_what_a_callback_raises_arrives_as_it_is(cluster: str) -> None:
    def broken(*_: int) -> None:
        raise ZeroDivisionError("mine")

    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        with pytest.raises(ZeroDivisionError, match="mine"):
            await pool.embed_batch(NAME, ["a", "b"], engine="dask", on_progress=broken)
        await until(lambda: node.in_flight == 0)


async def test_a_pool_that_is_closed_meanwhile(cluster: str) -> None:
    async with FakeOllama(models=[MODEL], seconds_per_item=1000.0) as node:
        pool = OllamaPool([node.url], enable_dask=True, dask_address=cluster, close_timeout=0)
        await pool.start()
        batch = asyncio.create_task(pool.embed_batch(NAME, ["a", "b"], engine="dask"))
        await until(lambda: node.in_flight)
        await pool.aclose()
        with pytest.raises(Exception, match="closed"):
            await batch
        await until(lambda: node.in_flight == 0)


def test_bad_engine_settings() -> None:
    with pytest.raises(InvalidInput):
        OllamaPool(["127.0.0.1"], enable_dask=True, dask_workers=-1)


def test_a_workers_log_does_not_tell_of_every_exchange() -> None:
    def record(words: str, *arguments: object) -> logging.LogRecord:
        return logging.LogRecord("distributed.worker", logging.INFO, "", 0, words, arguments, None)

    assert not dask_worker._is_news(record("Run out-of-band function %r", "obey"))
    assert dask_worker._is_news(record("Run out-of-band function %r", "attach"))
    assert dask_worker._is_news(record("Starting"))
