"""Batches on real Dask: workers in processes, nodes over real HTTP, and what goes wrong there."""

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
    PATIENCE,
    need,
    scheduler,
    vector,
    worker,
)

need("distributed", "pyarrow")

from dask import bag  # noqa: E402 (what follows `need`)

from aiosollol import BatchError, InvalidInput, OllamaPool, __version__  # noqa: E402
from aiosollol.embedded import EmbeddedNode  # noqa: E402
from aiosollol.engines.common import lease_leader  # noqa: E402
from aiosollol.engines.dask import link as dask_link  # noqa: E402
from aiosollol.engines.dask import worker as dask_worker  # noqa: E402
from aiosollol.errors import EngineError  # noqa: E402
from aiosollol.testing import FakeModel, FakeOllama, FakeOllamaProcess, Fault  # noqa: E402

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def cluster(anyio_backend: str) -> AsyncIterator[str]:
    """The address of a scheduler with two workers, for tests that leave them as they are."""
    async with scheduler(2) as address:
        yield address


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def report_of(embeddings: Any) -> Any:
    assert embeddings.report is not None
    return embeddings.report


# What it does.


async def test_a_batch_comes_back_whole_and_in_order(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(3000)]
    async with (
        FakeOllama(models=[MODEL]) as one,
        FakeOllama(models=[MODEL]) as two,
        OllamaPool([one.url, two.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        told: list[tuple[int, int]] = []
        embeddings = await pool.embed_batch(
            NAME, texts, engine="dask", on_progress=lambda *each: told.append(each)
        )
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]
        report = report_of(embeddings)
        assert (report.engine.name, report.engine.workers, report.engine.reruns) == ("dask", 2, 0)
        assert sum(share.items for share in report.nodes.values()) == 3000
        assert told == sorted(told)
        assert told[-1] == (3000, 3000)
        assert len(told) > 4
        assert pool.get_stats()["vectors"] == one.items + two.items == 3000
        stats = pool._carriage.stats()["dask"]
        assert stats["running"]
        assert stats["workers"] == 2
        assert stats["scheduler"] == cluster


async def test_equal_texts_and_bad_ones(cluster: str) -> None:
    texts = ["same"] * 50 + [f"text {index}" for index in range(100)] + ["spoilt"] * 2
    async with (
        FakeOllama(models=[MODEL], poison=["spoilt"]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        embeddings = await pool.embed_batch(NAME, texts, engine="dask", on_error="return")
        assert set(embeddings.errors) == {150, 151}
        assert "400" in str(embeddings.errors[150])
        for row, text in enumerate(texts[:150]):
            assert embeddings[row].tobytes() == vector(text)
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch(NAME, texts, engine="dask")
        assert set(caught.value.errors) == {150, 151}
        assert node.items < 101 * 2 + 20  # equal ones once; a bad one is looked for in halves


@pytest.mark.parametrize("limit", [None, 1, 3])
async def test_a_node_never_has_more_than_its_limit(cluster: str, limit: int | None) -> None:
    texts = [f"passage {index}" for index in range(1500)]
    async with (
        FakeOllama(models=[MODEL], slots=8, seconds_per_item=0.0005) as one,
        FakeOllama(models=[MODEL], slots=8, seconds_per_item=0.0005) as two,
        OllamaPool(
            [{"url": node.url, "max_concurrency": limit} for node in (one, two)],
            enable_dask=True,
            dask_address=cluster,
            same_machine="share",
        ) as pool,
    ):
        batches = (pool.embed_batch(NAME, texts[i::3], engine="dask") for i in range(3))
        for start, embeddings in enumerate(await asyncio.gather(*batches)):
            expected = [vector(text) for text in texts[start::3]]
            assert [each.tobytes() for each in embeddings] == expected
        for node in (one, two):
            assert 0 < node.max_in_flight <= (limit or 2)
        # Afterwards the nodes are the client's own again.
        await until(lambda: all(node.cap >= (limit or 3) for node in pool._registry))


async def test_live_requests_go_on_beside_a_batch(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(2000)]
    async with (
        FakeOllama(models=[MODEL], slots=8, seconds_per_item=0.0005) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        begun = asyncio.Event()
        batch = asyncio.create_task(
            pool.embed_batch(NAME, texts, engine="dask", on_progress=lambda *_: begun.set())
        )
        await asyncio.wait_for(begun.wait(), PATIENCE)
        for index in range(3):
            assert (await pool.embed(NAME, f"live {index}")).tobytes() == vector(f"live {index}")
        assert len(await batch) == 2000
        assert node.max_in_flight <= 2


async def test_a_batch_is_cancelled_on_the_wire(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(2000)]
    async with (
        FakeOllama(models=[MODEL], seconds_per_item=0.001) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        begun = asyncio.Event()
        batch = asyncio.create_task(
            pool.embed_batch(NAME, texts, engine="dask", on_progress=lambda *_: begun.set())
        )
        await asyncio.wait_for(begun.wait(), PATIENCE)
        node.seconds_per_item = 1000.0
        await until(lambda: node.in_flight)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        await until(lambda: node.in_flight == 0)
        assert node.cancelled > 0
        node.seconds_per_item = 0.0
        items = node.items
        embeddings = await pool.embed_batch(NAME, texts[:64], engine="dask")
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts[:64]]
        assert node.items == items + 64


async def test_a_batch_has_its_time(cluster: str) -> None:
    async with (
        FakeOllama(models=[MODEL], seconds_per_item=1000.0) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        embeddings = await pool.embed_batch(
            NAME, ["a", "b"], engine="dask", timeout=0.5, on_error="return"
        )
        assert set(embeddings.errors) == {0, 1}
        await until(lambda: node.in_flight == 0)


async def test_nodes_that_come_and_go_come_and_go_at_the_workers(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(200)]
    async with (
        FakeOllama(models=[MODEL]) as one,
        FakeOllama(models=[MODEL]) as two,
        OllamaPool([one.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        await pool.embed_batch(NAME, texts, engine="dask")
        assert (one.items, two.items) == (200, 0)
        await pool.add_node(two.url)
        await pool.remove_node(one.url)
        await pool.embed_batch(NAME, texts, engine="dask")
        assert (one.items, two.items) == (200, 200)
        await pool.add_node(one.url)
        await pool.drain(two.url)
        await pool.embed_batch(NAME, texts, engine="dask")
        assert (one.items, two.items) == (400, 200)


async def test_workers_use_the_digest_that_the_client_uses(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(200)]
    other = FakeModel(NAME, dim=4, digest="f" * 64)
    async with (
        FakeOllama(models=[MODEL]) as one,
        FakeOllama(models=[other]) as two,
        OllamaPool(
            [one.url, two.url],
            require_digest={NAME: MODEL.digest},
            enable_dask=True,
            dask_address=cluster,
        ) as pool,
    ):
        embeddings = await pool.embed_batch(NAME, texts, engine="dask")
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]
        assert two.items == 0


async def test_a_failing_node_is_done_without(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(1000)]
    async with (
        FakeOllama(models=[MODEL]) as one,
        FakeOllama(models=[MODEL]) as two,
        OllamaPool(
            [one.url, two.url], enable_dask=True, dask_address=cluster, same_machine="share"
        ) as pool,
    ):
        await pool.refresh()
        one.fault = Fault.ERROR_500
        embeddings = await pool.embed_batch(NAME, texts, engine="dask")
        assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]


async def test_embedded_nodes_give_the_vectors_that_they_give_here(cluster: str) -> None:
    texts = [f"text number {index} of many" for index in range(300)]
    async with (
        EmbeddedNode(process=True, aliases=[NAME]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as pool,
    ):
        there = await pool.embed_batch(NAME, texts, engine="dask")
        here = await pool.embed_batch(NAME, texts, engine="local")
        assert there == here
        assert there.dim == 256


async def test_small_batches_stay_here_and_large_ones_do_not(cluster: str) -> None:
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster, dask_threshold=100) as pool,
    ):
        texts = [f"passage {index}" for index in range(100)]
        embeddings = await pool.embed_batch(NAME, texts[:99])
        assert report_of(embeddings).engine.name == "local"
        assert not pool._carriage.stats()["dask"]["running"]
        await pool.embed_batch(NAME, ["a"], engine="dask")  # now it runs, and costs no start
        embeddings = await pool.embed_batch(NAME, texts)
        assert report_of(embeddings).engine.name == "dask"
        assert "at least 100" in report_of(embeddings).engine.reason


async def test_two_clients_at_one_cluster(cluster: str) -> None:
    texts = [f"passage {index}" for index in range(1000)]
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as one,
        OllamaPool([node.url], enable_dask=True, dask_address=cluster) as two,
    ):
        batches = [pool.embed_batch(NAME, texts, engine="dask") for pool in (one, two)]
        for embeddings in await asyncio.gather(*batches):
            assert [each.tobytes() for each in embeddings] == [vector(text) for text in texts]


# What goes wrong.


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
        link: Any = pool._carriage._engines["dask"]._session.link  # type: ignore[attr-defined]
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
        link: Any = pool._carriage._engines["dask"]._session.link  # type: ignore[attr-defined]
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
        engine: Any = pool._carriage._engines["dask"]
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
        engine: Any = pool._carriage._engines["dask"]
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
            assert "does not have aiosollol: pip install 'aiosollol[dask]" in await failure()
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
