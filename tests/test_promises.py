"""What the README promises, at size: many texts, many nodes, many calls."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from pydoc_data.topics import topics

import numpy
import pytest
import wordllama

from aiosollol import NodeSpec, OllamaPool
from aiosollol.embedded import EmbeddedNode
from aiosollol.testing import FakeModel, FakeOllama, FakeTransport, Fault, fake_vector

pytestmark = pytest.mark.anyio

MODEL = FakeModel("nomic-embed-text", dim=8)


@pytest.mark.parametrize("fault", list(Fault))
async def test_eight_nodes_one_of_them_failing_and_every_vector_is_right(fault: Fault) -> None:
    texts = [f"passage number {index}" for index in range(5000)]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(FakeOllama(models=[MODEL])) for _ in range(8)]
        urls = [node.url for node in nodes]
        pool = await stack.enter_async_context(OllamaPool(urls, same_machine="share"))
        await pool.refresh()
        nodes[0].seconds_per_piece = 0.001
        nodes[0].fault = fault
        embeddings = await pool.embed_batch("nomic-embed-text", texts)
        assert len(embeddings) == 5000
        assert not embeddings.errors
        for text, vector in zip(texts, embeddings, strict=True):
            assert vector.tobytes() == bytes(fake_vector(MODEL.digest, text, 8))


async def test_a_hundred_thousand_calls_are_counted_exactly_and_leave_nothing_behind() -> None:
    calls, in_flight = 100_000, 1_000
    nodes = {
        f"n{index}": FakeTransport(f"n{index}", models=[MODEL], slots=512) for index in range(4)
    }

    def transport_of(spec: NodeSpec) -> FakeTransport:
        return nodes[spec.name]

    specs = [NodeSpec(f"http://{name}.test", name=name) for name in nodes]
    # Without canaries, which nodes count and the pool does not.
    async with OllamaPool(specs, transport_factory=transport_of, canary=False) as pool:
        expected = bytes(fake_vector(MODEL.digest, "text", 8))
        left = 0
        blocks: list[int] = []

        async def caller() -> None:
            nonlocal left
            while left:
                left -= 1
                vector = await pool.embed("nomic-embed-text", "text")
                assert vector.tobytes() == expected

        for _ in range(2):
            left = calls // 2
            async with asyncio.TaskGroup() as group:
                for _ in range(in_flight):
                    group.create_task(caller())
            gc.collect()  # at rest: how many are under way at a moment is a matter of chance
            blocks.append(sys.getallocatedblocks())
        stats = pool.get_stats()
    assert stats["total_requests"] == stats["successful_requests"] == calls
    assert sum(stats["nodes_used"].values()) == stats["attempts"]
    assert stats["attempts"] == calls + stats["hedges"] + stats["retries"]
    for node in stats["node_performance"].values():
        assert node["total_requests"] == nodes[node["name"]].items
        assert node["active_requests"] == 0
    early, late = blocks
    assert late - early < 5_000, "50,000 calls must not leave a block of memory in ten behind"


async def test_vectors_of_a_real_model_arrive_as_it_made_them() -> None:
    model = wordllama.WordLlama.load(
        "l2_supercat",
        dim=256,
        cache_dir=Path(wordllama.__file__).parent,
        disable_download=True,
    )
    texts = [line for topic in sorted(topics)[:20] for line in topics[topic].splitlines() if line]
    async with (
        EmbeddedNode(process=True) as one,
        EmbeddedNode(process=True) as two,
        OllamaPool([one.url, two.url], same_machine="share") as pool,
    ):
        batch = await pool.embed_batch("wordllama", texts)
        native = await pool.embed_batch("wordllama", texts, truncate=True)
        single = await pool.embed("wordllama", texts[0])
    expected = model.embed(texts, norm=True)
    assert numpy.asarray(batch).tobytes() == expected.tobytes()
    assert native == batch, "JSON numbers and base64 are equal to the last bit"
    assert single.tobytes() == expected[0].tobytes()
