"""Batches on real Dask: workers in processes, nodes over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from dask_parts import MODEL, NAME, PATIENCE, need, report_of, scheduler, until, vector

need("distributed", "pyarrow")


from aiosollol import BatchError, OllamaPool  # noqa: E402
from aiosollol.embedded import EmbeddedNode  # noqa: E402
from aiosollol.testing import FakeModel, FakeOllama, Fault  # noqa: E402

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def cluster(anyio_backend: str) -> AsyncIterator[str]:
    """The address of a scheduler with two workers, for tests that leave them as they are."""
    async with scheduler(2) as address:
        yield address


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
        stats = pool._engine_batches.stats()["dask"]
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
        # Equal ones once; a bad one is looked for in halves, with checks of the node in between.
        assert node.items < 101 * 2 + 40


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
        assert not pool._engine_batches.stats()["dask"]["running"]
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
