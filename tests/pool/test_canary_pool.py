"""The canary of vectors over real HTTP: a node with the same digest and other vectors."""

from __future__ import annotations

from typing import Any

import pytest

from aiosollol import OllamaPool
from aiosollol.core.agreement import QUICK_CANARIES
from aiosollol.core.events import NodeChanged
from aiosollol.testing import FakeModel, FakeOllama, Fault, fake_vector

pytestmark = pytest.mark.anyio

MODEL = "nomic-embed-text"
FULL = f"{MODEL}:latest"
RIGHT = FakeModel(MODEL, dim=16)
WRONG = FakeModel(MODEL, dim=16, weights="other")


def right(text: str) -> bytes:
    return bytes(fake_vector(RIGHT.digest, text, RIGHT.dim))


async def changed(events: Any) -> NodeChanged:
    """The next change of trust."""
    async for event in events:
        if isinstance(event, NodeChanged) and event.change.startswith("vectors"):
            return event
    raise AssertionError("the pool was closed")


@pytest.mark.parametrize("version", ["0.33.0", "0.5.0"])  # base64, and JSON
async def test_a_node_that_differs_is_left_out_and_comes_back(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"version": version, "count_texts": True}
    async with (
        FakeOllama(models=[RIGHT], **given) as one,
        FakeOllama(models=[WRONG], **given) as two,
        FakeOllama(models=[RIGHT], **given) as three,
        OllamaPool(
            [{"url": each.url, "name": f"n{at}"} for at, each in enumerate((one, two, three))],
            routing_strategy="round_robin",
        ) as pool,
    ):
        events = pool.events()
        await pool.refresh()
        assert RIGHT.digest == WRONG.digest
        assert len({(await pool.embed(MODEL, "a")).tobytes() for _ in range(6)}) == 2
        told = await changed(events)
        assert (told.node, told.change) == ("n1", "vectors differ")
        assert FULL in told.detail
        assert "n0, n2" in told.detail
        warned = [each.getMessage() for each in caplog.records if "n1" in each.getMessage()]
        assert len(warned) == 1
        assert "verify" in warned[0]
        before = two.items
        for text in ("a", "b", "c", "d", "e", "f"):
            assert (await pool.embed(MODEL, text)).tobytes() == right(text)
        batch = await pool.embed_batch(MODEL, [f"text {number}" for number in range(200)])
        assert [row.tobytes() for row in batch] == [right(f"text {n}") for n in range(200)]
        assert two.items == before
        explained = await pool.route(MODEL)
        (reason,) = [node.reason for node in explained.nodes if not node.is_eligible]
        assert "vectors differ" in reason
        stats = pool.get_stats()
        distrusted = [each["distrusted_models"] for each in stats["node_performance"].values()]
        assert distrusted == [[], [FULL], []]
        counted = sum(len(QUICK_CANARIES) * each.embedded[QUICK_CANARIES[0]] for each in (one, two))
        assert counted == 2 * len(QUICK_CANARIES), "each was asked once"
        assert stats["vectors"] == sum(each.items for each in (one, two, three)) - 3 * 2
        assert (await pool.verify(MODEL)).outliers == ("n1",)
        two.add_model(RIGHT)
        assert (await pool.verify(MODEL)).outliers == ()
        told = await changed(events)
        assert (told.node, told.change) == ("n1", "vectors trusted")
        for text in ("a", "b", "c", "d", "e", "f"):
            assert (await pool.embed(MODEL, text)).tobytes() == right(text)
        assert two.items > before + 10


async def test_it_can_be_turned_off() -> None:
    async with (
        FakeOllama(models=[RIGHT], count_texts=True) as one,
        FakeOllama(models=[WRONG], count_texts=True) as two,
        OllamaPool([one.url, two.url], canary=False, routing_strategy="round_robin") as pool,
    ):
        await pool.refresh()
        for _ in range(10):
            await pool.embed(MODEL, "a")
        assert pool._lifecycle._canary is None
    for fake in (one, two):
        assert not any(fake.embedded[text] for text in QUICK_CANARIES)
        assert fake.items


async def test_a_pool_is_closed_in_the_middle_of_it() -> None:
    async with (
        FakeOllama(models=[RIGHT]) as one,
        FakeOllama(models=[RIGHT]) as two,
    ):
        async with OllamaPool([one.url, two.url], routing_strategy="round_robin") as pool:
            await pool.refresh()
            await pool.embed(MODEL, "a")
            await pool.embed(MODEL, "a")
            nodes = list(pool._registry)
            for fake in (one, two):
                fake.fault = Fault.HANG
            version = pool._registry.version
            while not all(node.in_flight for node in nodes):
                await pool._registry.wait_changed(version)  # the answers of /api/ps
                version = pool._registry.version
        assert [node.in_flight for node in nodes] == [0, 0]
        for fake in (one, two):
            fake.fault = None
