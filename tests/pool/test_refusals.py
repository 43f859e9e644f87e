"""Input that `OllamaPool` refuses, and errors of models and nodes, over fake servers."""

from __future__ import annotations

from typing import Any

import pytest
from facade_parts import CHAT, EMBED, HELLO, check

from aiosollol import (
    BadRequest,
    BatchError,
    InvalidInput,
    ModelNotFound,
    NoNodeAvailable,
    OllamaPool,
)
from aiosollol.testing import FakeModel, FakeOllama

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "no nodes"),
        ("http://127.0.0.1", "list"),
        ({"url": "http://127.0.0.1"}, "list"),
        (["ftp://127.0.0.1"], "ftp"),
        (["http://"], "address"),
        (["http://127.0.0.1:99999"], "99999"),
        ([{"host": "127.0.0.1", "port": "x"}], "port"),
        ([{"url": "http://a", "wieght": 3}], "wieght"),
        ([3], "int"),
        ([{"url": "http://a", "name": "n"}, {"url": "http://b", "name": "n"}], "two nodes"),
        (7, "int"),
    ],
)
def test_nodes_that_cannot_be_read(nodes: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        OllamaPool(nodes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda pool: pool.embed_batch("m", "a string"), "one string"),
        (lambda pool: pool.embed_batch("m", ["a", 3]), "item 1 must be a string, not int"),
        (lambda pool: pool.embed_batch("m", ["a", None]), "item 1"),
        (lambda pool: pool.embed_batch("m", 5), "int"),
        (lambda pool: pool.embed_batch("m", b"bytes"), "bytes"),
        (lambda pool: pool.embed_batch("m", ["fine", "\ud800"]), "item 1 has a lone surrogate"),
        (lambda pool: pool.embed_batch("", ["a"]), "model is empty"),
        (lambda pool: pool.embed_batch(None, ["a"]), "model must be a string"),
        (lambda pool: pool.embed_batch("m", ["a"], on_error="ignore"), "on_error"),
        (lambda pool: pool.embed_batch("m", ["a"], dimensions=0), "dimensions"),
        (lambda pool: pool.embed_batch("m", ["a"], options={"x": object()}), "JSON"),
        (lambda pool: pool.embed("m", "\udfff"), "lone surrogate"),
        (lambda pool: pool.embed("m", 3), "texts must be"),
        (lambda pool: pool.chat("m", "hi"), "messages must be a list"),
        (lambda pool: pool.chat("m", ["hi"]), "message 0 must be a mapping"),
        (lambda pool: pool.chat("m", [{"content": "hi"}]), "message 0 has no 'role'"),
        (lambda pool: pool.generate("m", 3), "must be a string"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(call: Any, says: str) -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(InvalidInput, match=says):
            await call(pool)
        assert fake.items == 0


async def test_an_unusable_text_fails_alone_where_errors_are_returned() -> None:
    texts = ["fine", "\ud800", "also fine"]
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        embeddings = await pool.embed_batch("nomic-embed-text", texts, on_error="return")
        assert set(embeddings.errors) == {1}
        check(embeddings, texts)
        assert all(value != value for value in embeddings[1])  # NaN


async def test_no_texts_give_no_vectors() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        assert len(await pool.embed_batch("nomic-embed-text", [])) == 0


async def test_an_empty_text_and_a_huge_one_are_embedded_like_any_other() -> None:
    texts = ["", "x" * 10_000_000]
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        check(await pool.embed_batch("nomic-embed-text", texts), texts)


async def test_an_unknown_model_names_the_nodes_and_what_they_have() -> None:
    async with (
        FakeOllama(models=[EMBED]) as fake,
        OllamaPool([{"url": fake.url, "name": "x"}]) as pool,
    ):
        for call in (pool.embed("typo", "a"), pool.embed_batch("typo", ["a"])):
            with pytest.raises(ModelNotFound, match="ollama pull typo") as caught:
                await call
            assert caught.value.nodes == {"x": ("nomic-embed-text:latest",)}


async def test_a_model_that_was_pulled_meanwhile_is_found() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.refresh()
        fake.add_model(FakeModel("fresh", dim=4))
        assert len(await pool.embed("fresh", "a")) == 4


async def test_every_node_down_lists_each_with_its_error(unused_port: int) -> None:
    async with OllamaPool(
        [f"127.0.0.1:{unused_port}", {"url": "http://no-such-host.invalid", "name": "gone"}]
    ) as pool:
        for call in (pool.embed("m", "a"), pool.embed_batch("m", ["a"]), pool.chat("m", HELLO)):
            with pytest.raises(NoNodeAvailable) as caught:
                await call
            assert set(caught.value.nodes) == {f"127.0.0.1:{unused_port}", "gone"}


async def test_a_bad_request_is_not_tried_elsewhere_and_not_held_against_the_node() -> None:
    async with (
        FakeOllama(models=[EMBED]) as one,
        FakeOllama(models=[EMBED]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        with pytest.raises(BadRequest, match="does not support chat"):
            await pool.chat("nomic-embed-text", HELLO)
        stats = pool.get_stats()
        assert stats["total_requests"] == 1
        assert all(node["success_rate"] == 1.0 for node in stats["node_performance"].values())


async def test_a_batch_with_poison_keeps_every_other_vector() -> None:
    texts = [f"text {index}" for index in range(200)]
    texts[20] = texts[150] = "arsenic"
    async with (
        FakeOllama(models=[EMBED], poison={"arsenic"}) as fake,
        OllamaPool([fake.url]) as pool,
    ):
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch("nomic-embed-text", texts)
        error = caught.value
        assert set(error.errors) == {20, 150}
        assert all(isinstance(each, BadRequest) for each in error.errors.values())
        check(error.embeddings, texts)


@pytest.mark.parametrize("keep_alive", ["weird", "5 m", "", True, float("nan"), float("inf"), [5]])
async def test_a_keep_alive_that_is_none_is_refused_early(keep_alive: Any) -> None:
    async with FakeOllama(models=[EMBED, CHAT]) as fake, OllamaPool([fake.url]) as pool:
        for call in (
            lambda: pool.embed("nomic-embed-text", "a", keep_alive=keep_alive),
            lambda: pool.embed_batch("nomic-embed-text", ["a"], keep_alive=keep_alive),
            lambda: pool.chat("llama3.2", HELLO, keep_alive=keep_alive),
        ):
            with pytest.raises(InvalidInput, match="keep_alive"):
                await call()
        assert fake.requests == 0


@pytest.mark.parametrize("keep_alive", ["5m", "1h30m", "-1s", "0", "1.5h", 300, -1, 0, 0.5])
async def test_a_keep_alive_in_every_form(keep_alive: Any) -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        assert len(await pool.embed("nomic-embed-text", "a", keep_alive=keep_alive)) == 16
