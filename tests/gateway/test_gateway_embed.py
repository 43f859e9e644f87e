"""Embeddings through the gateway: spread, gathered, and to the last bit those of the nodes."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from typing import Any

import pytest
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeModel, FakeOllama, Fault, fake_tokens

numpy = pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

MODEL = "all-minilm"
NEVER = GatewayOptions(gather_seconds=0.0)


def nodes(count: int, **options: Any) -> list[FakeOllama]:
    return [FakeOllama(**{"models": MODELS, "count_texts": True, **options}) for _ in range(count)]


def check(gateway: Cluster, vector: Any, text: str, dimensions: int = 0) -> None:
    expected = gateway.nodes[0].vector(MODEL, text, dimensions)
    assert numpy.asarray(vector, numpy.float32).tobytes() == expected


async def test_one_text_is_passed_on_as_bytes() -> None:
    async with cluster() as gateway:
        answer = await gateway.post("/api/embed", {"model": MODEL, "input": "a text"})
        assert answer.headers["X-Sollol-Node"] == gateway.pool.get_stats()["nodes"][0]
        check(gateway, answer.json["embeddings"][0], "a text")
        assert answer.json["prompt_eval_count"] == 4
        legacy = await gateway.post("/api/embeddings", {"model": MODEL, "prompt": "a text"})
        check(gateway, legacy.json["embedding"], "a text")
        listed = await gateway.post("/api/embed", {"model": MODEL, "input": ["a text"]})
        check(gateway, listed.json["embeddings"][0], "a text")


@pytest.mark.parametrize("text", ["é 日本語", 'quotes " and \\ and \n', "", "\0"])
async def test_odd_texts_have_their_vectors(text: str) -> None:
    async with cluster() as gateway:
        for texts in ([text], [text, "another"]):
            answer = await gateway.post("/api/embed", {"model": MODEL, "input": texts})
            assert answer.status == 200
            for vector, each in zip(answer.json["embeddings"], texts, strict=True):
                check(gateway, vector, each)


async def test_the_originals_field_works_too() -> None:
    async with cluster() as gateway:
        answer = await gateway.post("/api/embed", {"model": MODEL, "text": "a document"})
        check(gateway, answer.json["embeddings"][0], "a document")
        unknown = await gateway.post("/api/embed", {"text": "a document"})
        assert unknown.status == 404
        assert "nomic-embed-text" in unknown.json["error"]
        texts = await gateway.post("/api/embed", {"model": MODEL, "text": ["a", "b"]})
        assert len(texts.json["embeddings"]) == 2
        escaped = b'{"model": "%b", "\\u0074ext": "a document"}' % MODEL.encode()
        check(gateway, (await gateway.post("/api/embed", escaped)).json["embedding"], "a document")


async def test_a_list_is_spread_over_four_nodes() -> None:
    texts = [f"text number {number}" for number in range(1000)]
    fakes = nodes(4, seconds_per_item=0.002)
    async with cluster(*fakes) as gateway:
        for path in ("/api/embed", "/v1/embeddings"):
            for fake in fakes:
                fake.items = 0
            answer = await gateway.post(path, {"model": MODEL, "input": texts})
            assert answer.status == 200
            found = answer.json
            vectors = found.get("embeddings") or [each["embedding"] for each in found["data"]]
            for vector, text in zip(vectors, texts, strict=True):
                check(gateway, vector, text)
        assert all(fake.items >= 50 for fake in fakes), [fake.items for fake in fakes]
        assert len(answer.headers["X-Sollol-Node"].split(",")) == 4


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("version", ["0.33.0", "0.12.6"])
async def test_base64_is_base64_whatever_the_nodes_answer(version: str, count: int) -> None:
    async with cluster(*nodes(1, version=version)) as gateway:
        texts = [f"text {number}" for number in range(count)]
        body = {"model": MODEL, "input": texts, "encoding_format": "base64", "dimensions": 16}
        answer = await gateway.post("/v1/embeddings", body)
        assert answer.json["usage"]["prompt_tokens"] > 0
        for entry, text in zip(answer.json["data"], texts, strict=True):
            check(gateway, numpy.frombuffer(b64decode(entry["embedding"]), "<f4"), text, 16)


async def test_one_bad_text_fails_its_list_as_it_does_at_a_node() -> None:
    async with cluster(*nodes(2, poison=["poison"])) as gateway:
        for texts in (["poison"], ["good", "poison", "fine"]):
            body = {"model": MODEL, "input": texts}
            answer = await gateway.post("/api/embed", body)
            assert answer.status == 400
            assert answer.json == {"error": "the input length exceeds the context length"}
            answer = await gateway.post("/v1/embeddings", body)
            assert answer.json["error"]["message"].startswith("the input length exceeds")


@pytest.mark.parametrize("fault", [Fault.TOO_FEW, Fault.HTML, Fault.CUT_JSON, Fault.NAN])
async def test_a_wrong_answer_is_not_passed_on(fault: Fault) -> None:
    sick, sound = nodes(2)
    async with cluster(sick, sound, settings={"routing_strategy": "round_robin"}) as gateway:
        sick.fault = fault
        for number in range(4):
            answer = await gateway.post("/api/embed", {"model": MODEL, "input": f"text {number}"})
            assert answer.status == 200
            check(gateway, answer.json["embeddings"][0], f"text {number}")


LISTS = [
    pytest.param([f"text {number}" for number in range(300)], id="distinct"),
    pytest.param(["same", "same"], id="the same twice"),
    pytest.param(["a", "same", "bb", "same", "ccccc", "same", "bb"], id="some repeated"),
    pytest.param(["for(i=0;i<n;++i)" * n for n in range(1, 40)], id="code"),
    pytest.param(["日本語のテキストです。" * n for n in range(1, 40)] * 3, id="each three times"),
    pytest.param(["", ""], id="empty"),
]


@pytest.mark.parametrize("texts", LISTS)
@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
async def test_the_tokens_of_a_list_are_those_that_the_nodes_counted(
    path: str, texts: list[str]
) -> None:
    async with cluster(*nodes(3, seconds_per_item=0.001)) as gateway:
        answer = await gateway.post(path, {"model": MODEL, "input": texts})
        usage = answer.json.get("usage") or {"prompt_tokens": answer.json["prompt_eval_count"]}
        assert set(usage.values()) == {sum(map(fake_tokens, texts))}


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
@pytest.mark.parametrize("count", [20, 200])
async def test_the_shares_of_gathered_texts_add_up_to_what_the_nodes_counted(
    path: str, count: int
) -> None:
    texts = [f"text {number} " * (number % 7 + 1) for number in range(count - 5)] + ["same"] * 5
    fakes = nodes(2, overhead=0.005)
    async with cluster(*fakes) as gateway:
        found = await asyncio.gather(
            *(gateway.post(path, {"model": MODEL, "input": text}) for text in texts)
        )
        told = [
            answer.json["usage"]["prompt_tokens"]
            if "usage" in answer.json
            else answer.json["prompt_eval_count"]
            for answer in found
        ]
        due = [fake_tokens(text) for text in texts]
        stats = gateway.pool.get_stats()
        assert sum(fake.requests for fake in fakes) < count, "some were gathered"
        assert (stats["total_requests"], stats["successful_requests"]) == (count, count)
        assert stats["attempts"] < count
        assert sum(told) == sum(due)
        assert all(abs(one - other) <= 2 for one, other in zip(told, due, strict=True))


async def test_single_texts_are_gathered_when_many_come_at_once() -> None:
    fakes = nodes(2, overhead=0.005)
    async with cluster(*fakes) as gateway:
        texts = [f"text {number}" for number in range(200)]
        found = await asyncio.gather(
            *(gateway.post("/api/embed", {"model": MODEL, "input": text}) for text in texts)
        )
        for answer, text in zip(found, texts, strict=True):
            assert answer.status == 200
            check(gateway, answer.json["embeddings"][0], text)
            assert answer.json["prompt_eval_count"] > 0
        assert sum(fake.requests for fake in fakes) < 100
        assert all(fake.embedded[text] <= 1 for fake in fakes for text in texts)
        # Nobody waits who comes alone.
        answer = await gateway.post("/api/embed", {"model": MODEL, "input": "alone"})
        assert answer.headers["X-Sollol-Reason"] == "performance, 1 of 2"


async def test_gathered_texts_fail_one_by_one() -> None:
    async with cluster(*nodes(1, poison=["poison"], overhead=0.002)) as gateway:
        texts = [f"{'poison' if number % 10 == 0 else 'text'} {number}" for number in range(100)]
        found = await asyncio.gather(
            *(gateway.post("/v1/embeddings", {"model": MODEL, "input": text}) for text in texts)
        )
        for answer, text in zip(found, texts, strict=True):
            assert answer.status == (400 if "poison" in text else 200)


async def test_a_client_that_leaves_a_list_harms_nobody() -> None:
    async with cluster(*nodes(1, seconds_per_item=0.01)) as gateway:
        asking = [
            asyncio.create_task(gateway.post("/api/embed", {"model": MODEL, "input": f"text {n}"}))
            for n in range(60)
        ]
        await asyncio.sleep(0.1)
        for task in asking[::2]:
            task.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        for number, answer in enumerate(found):
            if number % 2:
                assert not isinstance(answer, BaseException)
                check(gateway, answer.json["embeddings"][0], f"text {number}")
        async with asyncio.timeout(5):
            while gateway.nodes[0].in_flight:
                await asyncio.sleep(0.01)


async def test_gathering_can_be_off() -> None:
    async with cluster(*nodes(1), options=NEVER) as gateway:
        found = await asyncio.gather(
            *(gateway.post("/api/embed", {"model": MODEL, "input": f"text {n}"}) for n in range(50))
        )
        assert all(answer.status == 200 for answer in found)
        assert gateway.nodes[0].requests >= 50


async def test_texts_of_other_settings_are_not_mixed() -> None:
    async with cluster(*nodes(1, overhead=0.002)) as gateway:
        bodies: list[dict[str, Any]] = [
            {"model": MODEL, "input": f"text {n}", **({"dimensions": 8} if n % 2 else {})}
            for n in range(80)
        ]
        found = await asyncio.gather(*(gateway.post("/api/embed", body) for body in bodies))
        for answer, body in zip(found, bodies, strict=True):
            check(gateway, answer.json["embeddings"][0], body["input"], body.get("dimensions", 0))


async def test_another_digest_is_left_out() -> None:
    one = FakeOllama(models=[FakeModel("m", digest="a" * 64)])
    two = FakeOllama(models=[FakeModel("m", digest="b" * 64)])
    async with cluster(one, two) as gateway:
        found = set()
        for number in range(6):
            body = {"model": "m", "input": f"text {number}"}
            found.add((await gateway.post("/api/embed", body)).headers["X-Sollol-Node"])
        assert len(found) == 1
