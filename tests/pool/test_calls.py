"""`get_stats` counts calls, each once, and beside them the requests to nodes that they took."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from aiosollol import NoNodeAvailable, OllamaPool
from aiosollol.core.node import NodeSpec
from aiosollol.errors import BadRequest, BatchError, InvalidInput, ModelNotFound, NodeError
from aiosollol.testing import FakeModel, FakeTransport, Fault

pytestmark = pytest.mark.anyio

MODEL, CHAT = "all-minilm", "llama3.2"
MODELS = [FakeModel(MODEL, dim=4), FakeModel(CHAT, dim=4, kind="chat")]
HELLO = [{"role": "user", "content": "hello there"}]
TEXTS = [f"text {number}" for number in range(600)]
KEYS = ("successful_requests", "failed_requests", "cancelled_requests")


class Made:
    """A pool of two fake nodes."""

    def __init__(self, **options: Any) -> None:
        self.nodes = {
            name: FakeTransport(
                name, models=MODELS, poison={"arsenic"}, seconds_per_chat_token=1e-3
            )
            for name in "ab"
        }
        specs = [NodeSpec(f"http://{name}.test", name=name) for name in self.nodes]
        self.pool = OllamaPool(
            specs, transport_factory=lambda spec: self.nodes[spec.name], **options
        )


async def embed(made: Made) -> object:
    return await made.pool.embed(MODEL, "a text")


async def embed_list(made: Made) -> object:
    return await made.pool.embed(MODEL, ["a text", "another"])


async def embed_poison(made: Made) -> object:
    return await made.pool.embed(MODEL, "arsenic")


async def batch(made: Made) -> object:
    return await made.pool.embed_batch(MODEL, TEXTS)


async def batch_with_poison(made: Made) -> object:
    return await made.pool.embed_batch(MODEL, [*TEXTS, "arsenic"])


async def batch_that_returns_errors(made: Made) -> object:
    return await made.pool.embed_batch(MODEL, [*TEXTS, "arsenic"], on_error="return")


async def stream(made: Made) -> object:
    return [vector async for vector in made.pool.embed_stream(MODEL, TEXTS)]


async def stream_with_poison(made: Made) -> object:
    return [vector async for vector in made.pool.embed_stream(MODEL, [*TEXTS, "arsenic"])]


async def stream_left_early(made: Made) -> None:
    async with made.pool.embed_stream(MODEL, TEXTS) as vectors:
        await anext(vectors)


async def chat(made: Made) -> object:
    return await made.pool.chat(CHAT, HELLO)


async def chat_streamed(made: Made) -> object:
    return [part async for part in await made.pool.chat(CHAT, HELLO, stream=True)]


async def chat_cut_off(made: Made) -> object:
    for node in made.nodes.values():
        node.fault = Fault.STREAM_CUT
    return [part async for part in await made.pool.chat(CHAT, HELLO, stream=True)]


async def chat_left_early(made: Made) -> None:
    async with aclosing(await made.pool.chat(CHAT, HELLO, stream=True)) as parts:
        await anext(parts)


async def generate(made: Made) -> object:
    return await made.pool.generate(CHAT, "hello")


async def forwarded(made: Made) -> object:
    body = b'{"model":"all-minilm","input":"a"}'
    return await made.pool.gateway_access.forward("embed", "/api/embed", MODEL, body, texts=["a"])


async def unknown_model(made: Made) -> object:
    return await made.pool.embed("typo", "a text")


async def unknown_model_of_a_batch(made: Made) -> object:
    return await made.pool.embed_batch("typo", ["a text"])


async def invalid(made: Made) -> object:
    return await made.pool.embed(MODEL, "\ud800")


async def nothing(made: Made) -> object:
    return await made.pool.embed_batch(MODEL, [])


async def by_a_timeout(made: Made) -> object:
    for node in made.nodes.values():
        node.fault = Fault.HANG
    return await asyncio.wait_for(made.pool.embed(MODEL, "a text"), 0.01)


async def others(made: Made) -> object:
    await made.pool.refresh()
    await made.pool.verify(MODEL)
    return await made.pool.warm(MODEL)


CALLS: list[tuple[Callable[[Made], Awaitable[object]], type[BaseException] | None, str | None]] = [
    (embed, None, "successful_requests"),
    (embed_list, None, "successful_requests"),
    (embed_poison, BadRequest, "failed_requests"),
    (batch, None, "successful_requests"),
    (batch_with_poison, BatchError, "failed_requests"),
    (batch_that_returns_errors, None, "successful_requests"),
    (stream, None, "successful_requests"),
    (stream_with_poison, BatchError, "failed_requests"),
    (stream_left_early, None, "cancelled_requests"),
    (chat, None, "successful_requests"),
    (chat_streamed, None, "successful_requests"),
    (chat_cut_off, NodeError, "failed_requests"),
    (chat_left_early, None, "cancelled_requests"),
    (generate, None, "successful_requests"),
    (forwarded, None, "successful_requests"),
    (unknown_model, ModelNotFound, "failed_requests"),
    (unknown_model_of_a_batch, ModelNotFound, "failed_requests"),
    (by_a_timeout, TimeoutError, "cancelled_requests"),
    (invalid, InvalidInput, None),
    (nothing, None, None),
    (others, None, None),
]


@pytest.mark.parametrize(("call", "error", "key"), CALLS, ids=[each[0].__name__ for each in CALLS])
async def test_a_call_is_counted_once(
    call: Callable[[Made], Awaitable[object]], error: type[BaseException] | None, key: str | None
) -> None:
    made = Made()
    async with made.pool:
        if error is None:
            await call(made)
        else:
            with pytest.raises(error):
                await call(made)
        stats = made.pool.get_stats()
    assert {name: stats[name] for name in KEYS} == {name: int(name == key) for name in KEYS}
    assert stats["total_requests"] == int(key is not None)
    assert stats["attempts"] == sum(stats["nodes_used"].values())


async def test_retries_are_counted_beside() -> None:
    made = Made(routing_strategy="round_robin", hedge_rate=0.0)
    async with made.pool:
        await made.pool.refresh()
        made.nodes["a"].fault = Fault.ERROR_500
        for _ in range(4):
            await made.pool.embed(MODEL, "a text")
        stats = made.pool.get_stats()
        for node in made.nodes.values():
            node.fault = Fault.REFUSE
        with pytest.raises(NoNodeAvailable):
            await made.pool.embed(MODEL, "a text", timeout=0.05)
        after = made.pool.get_stats()
    assert (stats["total_requests"], stats["successful_requests"]) == (4, 4)
    assert stats["retries"] == stats["failed_attempts"] == stats["attempts"] - 4 > 0
    assert (stats["hedges"], stats["second_opinions"]) == (0, 0)
    assert (after["total_requests"], after["failed_requests"]) == (5, 1)


async def test_hedges_are_counted_beside() -> None:
    made = Made(hedge_rate=1.0)
    async with made.pool:
        await made.pool.warm(MODEL)  # a load that hangs is waited for much longer
        for _ in range(200):
            await made.pool.embed(MODEL, "a text")
        before = made.pool.get_stats()
        for name in made.nodes:
            made.nodes[name].fault = Fault.HANG
            await asyncio.gather(*(made.pool.embed(MODEL, "a text") for _ in range(5)))
            made.nodes[name].fault = None
        stats = made.pool.get_stats()
    assert (stats["total_requests"], stats["successful_requests"]) == (210, 210)
    hedges = stats["hedges"] - before["hedges"]
    assert hedges > 0
    assert stats["attempts"] == 210 + stats["hedges"] + stats["retries"]


async def test_closing_the_pool_cancels_what_is_under_way() -> None:
    made = Made(close_timeout=0.0)
    async with made.pool:
        await made.pool.refresh()
        for node in made.nodes.values():
            node.fault = Fault.HANG
        calls = [asyncio.create_task(embed(made)), asyncio.create_task(batch(made))]
        while sum(node.in_flight for node in made.nodes.values()) < 2:
            await asyncio.sleep(0)
        await made.pool.aclose()
        await asyncio.gather(*calls, return_exceptions=True)
        stats = made.pool.get_stats()
    assert (stats["total_requests"], stats["cancelled_requests"]) == (2, 2)
