"""`FakeTransport`: costs, slots, loads, models and chats in exact virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import orjson
import pytest
import trio.testing
from fake_transport_calls import chat_body, embed

from aiosollol.errors import (
    BadRequest,
    ModelMissing,
    NodeTimeout,
    ServerBusy,
)
from aiosollol.ports import Transport
from aiosollol.testing import FakeModel, FakeTransport, fake_tokens, fake_vector
from aiosollol.testing import models as fake_model
from aiosollol.wire.ollama.embeddings import load_embeddings

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> Any:
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


async def test_it_is_a_transport() -> None:
    transport: Transport = FakeTransport("a")
    assert orjson.loads(await transport.request("GET", "/api/version", timeout=1)) == {
        "version": "0.33.0"
    }


async def test_costs_add_up_exactly() -> None:
    node = FakeTransport("a", overhead=0.5, seconds_per_item=0.25, seconds_per_token=0.125)
    began = anyio.current_time()
    answer = orjson.loads(await embed(node, "abcd", "abcde"))  # 3 and 4 tokens
    assert anyio.current_time() - began == 0.5 + 2 * 0.25 + 7 * 0.125
    assert answer["prompt_eval_count"] == 7
    assert answer["total_duration"] == 1_875_000_000


async def test_a_cost_changes_from_the_next_item_on() -> None:
    node = FakeTransport("a", seconds_per_item=1.0)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(embed, node, *"abcdef")
        await anyio.sleep(2.5)
        node.seconds_per_item = 10.0
    assert anyio.current_time() - began == 3 * 1.0 + 3 * 10.0


async def test_slots_are_taken_in_the_order_of_asking() -> None:
    node = FakeTransport("a", seconds_per_item=1.0, slots=2)
    began = anyio.current_time()
    ended = []

    async def ask(name: str) -> None:
        await embed(node, name)
        ended.append((name, anyio.current_time() - began))

    async with anyio.create_task_group() as tasks:
        for name in "abcde":
            tasks.start_soon(ask, name)
            await anyio.sleep(0.125)
    assert ended == [("a", 1.0), ("b", 1.125), ("c", 2.0), ("d", 2.125), ("e", 3.0)]
    assert (node.requests, node.items, node.max_in_flight, node.in_flight) == (5, 5, 5, 0)


async def test_a_slot_of_one_who_left_goes_to_the_next() -> None:
    node = FakeTransport("a", seconds_per_item=8.0)
    began = anyio.current_time()
    ended = []

    async def ask(name: str, timeout: float) -> None:
        try:
            await embed(node, name, timeout=timeout)
        except NodeTimeout:
            ended.append((name, "left", anyio.current_time() - began))
        else:
            ended.append((name, "done", anyio.current_time() - began))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "computing", 4.0)
        await anyio.sleep(1)
        tasks.start_soon(ask, "waiting", 2.0)
        await anyio.sleep(1)
        tasks.start_soon(ask, "next", 100.0)
    assert ended == [("waiting", "left", 3.0), ("computing", "left", 4.0), ("next", "done", 12.0)]
    assert (node.cancelled, node.items, node.in_flight) == (2, 1, 0)


async def test_more_slots_wake_those_who_wait() -> None:
    node = FakeTransport("a", seconds_per_item=4.0)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(embed, node, name)
        await anyio.sleep(1)
        node.slots = 3
    assert anyio.current_time() - began == 5.0


async def test_a_load_is_paid_once_and_thrown_away_by_who_leaves() -> None:
    node = FakeTransport("a", load_seconds=10.0, seconds_per_item=1.0)
    began = anyio.current_time()
    with pytest.raises(NodeTimeout):
        await embed(node, "x", timeout=9.0)
    await embed(node, "x")
    assert anyio.current_time() - began == 9 + 10 + 1
    await embed(node, "y")
    assert anyio.current_time() - began == 9 + 10 + 1 + 1


async def test_other_options_load_again() -> None:
    node = FakeTransport("a", load_seconds=10.0)
    began = anyio.current_time()
    for options in ({}, {"seed": 1}, {"num_ctx": 512}, {"num_ctx": 512}, {}):
        await embed(node, "x", options=options)
    assert anyio.current_time() - began == 3 * 10.0


async def test_an_empty_list_loads_and_keep_alive_zero_unloads() -> None:
    node = FakeTransport("a", load_seconds=10.0)
    assert orjson.loads(await embed(node)) == {"model": "nomic-embed-text", "embeddings": []}
    assert [name for name, _ in node.memory] == ["nomic-embed-text:latest"]
    await embed(node, "x", keep_alive=0)
    assert list(node.memory) == []


async def test_the_least_recently_used_model_is_evicted() -> None:
    node = FakeTransport("a", load_seconds=10.0, max_loaded=2, models=["x", "y", "z"])
    for model in ("x", "y", "x", "z"):
        await embed(node, "text", model=model)
    assert [name for name, _ in node.memory] == ["x:latest", "z:latest"]
    began = anyio.current_time()
    await embed(node, "text", model="y")
    assert anyio.current_time() - began == 10.0
    assert node.memory.loads == ["x:latest", "y:latest", "z:latest", "y:latest"]


async def test_an_idle_model_is_unloaded_after_its_keep_alive() -> None:
    node = FakeTransport("a", seconds_per_item=50.0)
    await embed(node, "x", keep_alive=60)
    await anyio.sleep(59.0)
    await embed(node, "x", keep_alive=60)  # longer than what was left
    await anyio.sleep(59.0)
    await embed(node, "x", keep_alive=60)
    assert node.memory.loads == ["nomic-embed-text:latest"]
    await anyio.sleep(61.0)
    await embed(node, "x")
    assert len(node.memory.loads) == 2


async def test_a_full_queue_is_503_for_cold_models_only() -> None:
    node = FakeTransport("a", load_seconds=10.0, max_queue=1, models=["hot", "cold"])
    await embed(node, model="hot")
    errors = []

    async def ask() -> None:
        try:
            await embed(node, "x", model="cold")
        except ServerBusy as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)  # one loads, one waits, two are too many
        await anyio.sleep(1)
        began = anyio.current_time()
        await embed(node, "x", model="hot")
        assert anyio.current_time() == began
    assert [error.status for error in errors] == [503, 503]


async def test_vectors_are_those_of_the_pure_function() -> None:
    model = FakeModel("m", dim=96, digest="d")
    node = FakeTransport("a", models=[model], count_texts=True)
    texts = ["hello", "", "hello", "\N{GRINNING FACE}"]
    answer = load_embeddings("a", await embed(node, *texts, model="m"), 4)
    assert answer.dim == 96
    assert answer.floats.tobytes() == b"".join(fake_vector("d", text, 96) for text in texts)
    assert node.vector("m", "hello") == fake_vector("d", "hello", 96)
    assert node.embedded == {"hello": 2, "": 1, "\N{GRINNING FACE}": 1}
    short = load_embeddings("a", await embed(node, "hello", model="m", dimensions=8), 1)
    assert short.floats.tobytes() == node.vector("m", "hello", 8)


@pytest.mark.parametrize("dim", [1, 8, 64, 768])
def test_fake_vectors(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = memoryview(fake_vector("d", "text", dim)).cast("f")
    assert len(vector) == dim
    assert sum(number * number for number in vector) == pytest.approx(1.0, abs=1e-5)
    others = {fake_vector(digest, text, dim) for digest in "de" for text in ("t", "u", "text")}
    assert dim == 1 or len(others) == 6
    whole = memoryview(fake_vector("d", "text", 1024)).cast("f")[:dim]
    length = sum(number * number for number in whole) ** 0.5
    assert vector.tolist() == pytest.approx([number / length for number in whole], abs=1e-6)
    monkeypatch.setattr(fake_model, "numpy", None)
    assert fake_vector("d", "text", dim) == vector.tobytes()


@pytest.mark.parametrize(("text", "tokens"), [("", 2), ("a", 3), ("abcd", 3), ("abcde", 4)])
def test_fake_tokens(text: str, tokens: int) -> None:
    assert fake_tokens(text) == tokens


async def test_one_poisoned_text_fails_the_list_after_all_is_computed() -> None:
    node = FakeTransport("a", seconds_per_item=1.0, poison=["bad"])
    began = anyio.current_time()
    with pytest.raises(BadRequest, match="the input length exceeds the context length"):
        await embed(node, "good", "a bad one", "good")
    assert anyio.current_time() - began == 3.0
    node.poison.clear()
    await embed(node, "a bad one")


async def test_too_long_without_truncation_is_refused() -> None:
    node = FakeTransport("a", models=[FakeModel("m", context_length=10)])
    with pytest.raises(BadRequest, match="exceeds the context length"):
        await embed(node, "ok", "x" * 100, model="m", truncate=False)
    assert orjson.loads(await embed(node, "x" * 100, model="m"))["prompt_eval_count"] == 10


async def test_models_come_and_go() -> None:
    node = FakeTransport("a", models=["m"])
    node.remove_model("m")
    with pytest.raises(ModelMissing, match='model "m" not found, try pulling it first'):
        await embed(node, "x", model="m")
    node.add_model("m")
    await embed(node, "x", model="m")


async def test_a_chat_streams_its_prompt_in_exact_time() -> None:
    node = FakeTransport("a", overhead=0.5, seconds_per_chat_token=1.0)
    began = anyio.current_time()
    got = []
    async with node.stream("/api/chat", chat_body("one two three"), timeout=100) as pieces:
        async for piece in pieces:
            line = orjson.loads(piece)
            got.append((anyio.current_time() - began, line["message"]["content"], line["done"]))
    assert got == [
        (1.5, "one", False),
        (2.5, " two", False),
        (3.5, " three", False),
        (3.5, "", True),
    ]
    assert line["eval_duration"] == 3_000_000_000
    assert (line["done_reason"], line["eval_count"]) == ("stop", 3)


async def test_who_leaves_a_stream_frees_the_slot() -> None:
    node = FakeTransport("a", seconds_per_chat_token=1.0)
    began = anyio.current_time()
    async with node.stream("/api/chat", chat_body("one two three"), timeout=100) as pieces:
        await anext(pieces)
    assert (node.in_flight, node.cancelled) == (0, 1)
    await node.request("POST", "/api/chat", chat_body("one", stream=False), timeout=100)
    assert anyio.current_time() - began == 2.0


async def test_who_leaves_after_the_last_line_did_not_leave() -> None:
    node = FakeTransport("a")
    async with node.stream("/api/chat", chat_body("one"), timeout=100) as pieces:
        while not orjson.loads(await anext(pieces))["done"]:
            pass
    assert (node.in_flight, node.cancelled) == (0, 0)


async def test_the_timeout_of_a_stream_covers_all_of_it_but_not_its_reader() -> None:
    node = FakeTransport("a", seconds_per_chat_token=1.0)
    began = anyio.current_time()
    async with node.stream("/api/chat", chat_body("a b c d"), timeout=3.5) as pieces:
        for _ in range(3):
            await anext(pieces)
        with pytest.raises(NodeTimeout):
            await anext(pieces)
        assert anyio.current_time() - began == 3.5
        await anyio.sleep(10)  # the reader's own affairs are not cut short
    assert node.cancelled == 1


async def test_num_predict_cuts_and_says_so() -> None:
    node = FakeTransport("a")
    body = chat_body("one two three", stream=False, options={"num_predict": 2})
    answer = orjson.loads(await node.request("POST", "/api/chat", body, timeout=1))
    assert answer["message"]["content"] == "one two"
    assert answer["done_reason"] == "length"
