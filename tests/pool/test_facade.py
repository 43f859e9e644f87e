"""`OllamaPool` over fake servers: batches, settings, options, and nodes that change or fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from facade_parts import EMBED, check, vector

from aiosollol import (
    BatchError,
    ModelNotFound,
    NodeRegistry,
    NodeSpec,
    OllamaPool,
)
from aiosollol.testing import FakeModel, FakeOllama, Fault

pytestmark = pytest.mark.anyio


# What it does.


async def test_a_batch_is_spread_over_the_nodes_in_input_order() -> None:
    texts = [f"text {index}" for index in range(300)]
    async with (
        FakeOllama(models=[EMBED], seconds_per_item=0.0005) as one,
        FakeOllama(models=[EMBED], seconds_per_item=0.0005) as two,
        OllamaPool([one.url, two.url], same_machine="share") as pool,
    ):
        embeddings = await pool.embed_batch("nomic-embed-text", texts)
        check(embeddings, texts)
        report = embeddings.report
        assert report is not None
        assert (report.items, report.unique) == (300, 300)
        assert sum(share.items for share in report.nodes.values()) == 300
        assert [share.items > 0 for share in report.nodes.values()] == [True, True]
        assert one.items + two.items >= 300


async def test_only_nodes_that_have_the_model_are_used() -> None:
    async with (
        FakeOllama(models=[EMBED]) as one,
        FakeOllama(models=["another"]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        await pool.embed_batch("nomic-embed-text:latest", ["a", "b"])
        await pool.embed("nomic-embed-text", "c")
        assert two.items == 0


async def test_equal_texts_are_computed_once() -> None:
    texts = ["same", "other", "same", "same"]
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        check(await pool.embed_batch("nomic-embed-text", texts), texts)
        assert fake.items == 2


async def test_one_text_gives_a_vector_and_a_list_gives_embeddings() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        one = await pool.embed("nomic-embed-text", "one text")
        assert one.tobytes() == vector("one text")
        many = await pool.embed("nomic-embed-text", ["a", "", "a"])
        check(many, ["a", "", "a"])
        assert many.report is not None
        ((node, share),) = many.report.nodes.items()
        assert (share.items, share.requests) == (3, 1)
        assert fake.url.endswith(node)
        short = await pool.embed("nomic-embed-text", "one text", dimensions=4)
        assert len(short) == 4
        assert len(await pool.embed("nomic-embed-text", [])) == 0


async def test_progress_counts_repeated_texts_too() -> None:
    seen: list[tuple[int, int]] = []
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.embed_batch(
            "nomic-embed-text", ["a", "b"] * 50, on_progress=lambda *step: seen.append(step)
        )
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


async def test_vectors_are_told_of_as_they_come() -> None:
    texts = [f"text {number % 150}" for number in range(200)]
    told: dict[int, list[float]] = {}
    settled: list[int] = []

    def tell(rows: Sequence[int], vectors: memoryview[float]) -> None:
        told.update(zip(rows, vectors.tolist(), strict=True))
        settled.append(len(told))

    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        embeddings = await pool.embed_batch("nomic-embed-text", texts, on_vectors=tell)
    assert [told[row] for row in range(200)] == [list(vector) for vector in embeddings]
    assert settled[0] < 200, "not only at the end"


async def test_max_concurrency_is_obeyed_by_batches_and_live_calls_together() -> None:
    async with (
        FakeOllama(models=[EMBED], seconds_per_item=0.0005) as fake,
        OllamaPool([{"url": fake.url, "max_concurrency": 3}]) as pool,
    ):
        await asyncio.gather(
            pool.embed_batch("nomic-embed-text", [f"batch {index}" for index in range(60)]),
            *(pool.embed("nomic-embed-text", f"live {index}") for index in range(30)),
        )
        assert fake.max_in_flight <= 3


async def test_a_registry_can_be_given() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        registry = NodeRegistry([NodeSpec(fake.url, name="mine")])
        async with OllamaPool(registry) as pool:
            await pool.embed("nomic-embed-text", "a")
            assert pool.view.nodes["mine"].has_model("nomic-embed-text")


async def test_without_nodes_ollama_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        monkeypatch.setenv("OLLAMA_HOST", fake.url.removeprefix("http://"))
        async with OllamaPool() as pool:
            assert len(await pool.embed("nomic-embed-text", "a")) == 16
    monkeypatch.delenv("OLLAMA_HOST")
    assert OllamaPool().view.nodes.keys() == {"127.0.0.1:11434"}


async def test_a_silent_node_delays_nobody(unused_port: int) -> None:
    async with FakeOllama(models=[EMBED]) as fake, FakeOllama(faults_probes=True) as silent:
        silent.fault = Fault.HANG
        async with OllamaPool([silent.url, fake.url]) as pool, asyncio.timeout(3):
            check(await pool.embed_batch("nomic-embed-text", ["a", "b"]), ["a", "b"])
            assert len(await pool.embed("nomic-embed-text", "a")) == 16


# The wire.


@pytest.mark.parametrize("version", ["0.12.6", "0.13.0"])
async def test_either_encoding_gives_the_same_bits_and_is_learned(version: str) -> None:
    texts = [f"text {index}" for index in range(50)]
    async with FakeOllama(models=[EMBED], version=version) as fake, OllamaPool([fake.url]) as pool:
        check(await pool.embed_batch("nomic-embed-text", texts), texts)
        assert (await pool.embed("nomic-embed-text", "one")).tobytes() == vector("one")
        paths = [record.path for record in fake.log if record.items]
        if version == "0.13.0":
            assert set(paths) == {"/v1/embeddings"}
        else:  # what came back told, and it is not asked again
            assert paths[-1] == "/api/embed"
            assert 1 <= paths.count("/v1/embeddings") <= 2


async def test_a_request_with_options_goes_where_they_count() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.embed_batch("nomic-embed-text", ["a", "b"], options={"num_ctx": 512})
        await pool.embed("nomic-embed-text", "c", keep_alive="1m")
        assert {record.path for record in fake.log if record.items} == {"/api/embed"}


# What attackers found.


async def test_a_batch_whose_parts_are_cancelled_from_outside_never_looks_finished() -> None:
    texts = [f"text {index}" for index in range(300)]

    def cancel(done: int, of: int) -> None:
        raise asyncio.CancelledError

    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch("nomic-embed-text", texts, on_progress=cancel)
        check(caught.value.embeddings, texts)
        assert caught.value.errors


async def test_what_on_progress_raises_arrives_as_it_is() -> None:
    def fail(done: int, of: int) -> None:
        raise KeyError("mine")

    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(KeyError, match="mine"):
            await pool.embed_batch("nomic-embed-text", ["a"], on_progress=fail)


async def test_calls_at_the_same_time_share_one_look_for_a_model() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.refresh()
        fake.add_model(FakeModel("fresh", dim=4))
        vectors = await asyncio.gather(*(pool.embed("fresh", f"text {n}") for n in range(10)))
        assert [len(each) for each in vectors] == [4] * 10


async def test_nodes_added_and_removed_while_the_pool_runs() -> None:
    async with FakeOllama(models=[EMBED]) as one, FakeOllama(models=[EMBED]) as two:
        registry = NodeRegistry([NodeSpec(one.url, name="node")])
        async with OllamaPool(registry) as pool:
            await pool.embed("nomic-embed-text", "a")
            registry.remove("node")
            registry.add(NodeSpec(two.url, name="node"))
            await pool.embed("nomic-embed-text", "b")
            with pytest.raises(ModelNotFound):
                await pool.embed("typo", "c")
        assert (one.items, two.items) == (1, 1)


async def test_a_node_that_restarts_in_mid_batch_goes_on() -> None:
    texts = [f"text {index}" for index in range(400)]
    async with (
        FakeOllama(models=[EMBED], seconds_per_item=0.002) as fake,
        OllamaPool([fake.url]) as pool,
    ):
        batch = asyncio.ensure_future(pool.embed_batch("nomic-embed-text", texts))
        while fake.items < 50:
            await asyncio.sleep(0)
        fake.fault = Fault.REFUSE
        while not pool.view.nodes[fake.url.removeprefix("http://")].is_down:
            await asyncio.sleep(0)
        fake.fault = None
        check(await batch, texts)
