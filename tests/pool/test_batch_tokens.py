"""Tokens of a batch through a pool: the sum of what the nodes counted, whatever happens to it."""

from __future__ import annotations

from typing import Any

import pytest

from aiosollol import BatchError, OllamaPool
from aiosollol.core.node import NodeSpec
from aiosollol.testing import FakeModel, FakeTransport, Fault, fake_tokens

pytestmark = pytest.mark.anyio

MODEL = FakeModel("all-minilm", dim=4)
TEXTS = [f"text number {number} " * (number % 9 + 1) for number in range(400)]
REPEATED = TEXTS + TEXTS[:50] + TEXTS[20:70] + ["odd"] * 7
SLOW = {"seconds_per_item": 1e-5}

BATCHES = [
    pytest.param(TEXTS, [SLOW] * 3, id="three nodes"),
    pytest.param(REPEATED, [SLOW] * 3, id="equal texts"),
    pytest.param(TEXTS[:40], [{"seconds_per_item": 0.03}, SLOW, SLOW], id="copies of late chunks"),
    pytest.param(["x", "x", ""], [SLOW], id="few"),
]


def pool_of(nodes: dict[str, FakeTransport]) -> OllamaPool:
    specs = [NodeSpec(f"http://{name}.test", name=name) for name in nodes]
    return OllamaPool(specs, transport_factory=lambda spec: nodes[spec.name])


@pytest.mark.parametrize(("texts", "options"), BATCHES)
async def test_the_report_has_what_the_nodes_counted(
    texts: list[str], options: list[dict[str, Any]]
) -> None:
    nodes = {
        f"n{place}": FakeTransport(f"n{place}", models=[MODEL], **each)
        for place, each in enumerate(options)
    }
    async with pool_of(nodes) as pool:
        report = (await pool.embed_batch("all-minilm", texts)).report
    assert report is not None
    assert report.tokens_are_exact
    assert report.tokens == sum(map(fake_tokens, texts))
    distinct = sum(map(fake_tokens, set(texts)))
    assert sum(share.tokens for share in report.nodes.values()) == distinct


async def test_what_a_node_failed_is_counted_where_it_was_answered() -> None:
    nodes = {name: FakeTransport(name, models=[MODEL], seconds_per_item=1e-5) for name in "ab"}
    nodes["a"].fault = Fault.ERROR_500
    async with pool_of(nodes) as pool:
        report = (await pool.embed_batch("all-minilm", REPEATED, force_mode="parallel")).report
    assert report is not None
    assert report.nodes["a"].tokens == 0
    assert (report.tokens, report.retries > 0) == (sum(map(fake_tokens, REPEATED)), True)


async def test_a_text_without_a_vector_is_not_counted() -> None:
    node = FakeTransport("n", models=[MODEL], poison={"arsenic"})
    async with pool_of({"n": node}) as pool:
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch("all-minilm", [*TEXTS, "arsenic"])
    report = caught.value.embeddings.report
    assert report is not None
    assert report.tokens == sum(map(fake_tokens, TEXTS))


async def test_a_stream_adds_up_the_tokens_of_its_segments() -> None:
    texts = REPEATED * 5  # more than a segment
    async with pool_of({"n": FakeTransport("n", models=[MODEL])}) as pool:
        stream = pool.embed_stream("all-minilm", texts)
        assert len([vector async for vector in stream]) == len(texts)
    assert stream.tokens == sum(map(fake_tokens, texts))


async def test_a_list_sent_as_one_request_has_the_servers_count() -> None:
    texts = ["same", "same", "other text"]
    async with pool_of({"n": FakeTransport("n", models=[MODEL])}) as pool:
        report = (await pool.embed("all-minilm", texts)).report
    assert report is not None
    assert (report.tokens, report.tokens_are_exact) == (sum(map(fake_tokens, texts)), True)
