"""The end of `OllamaPool`: closing, waiting for calls, and cancelling them."""

from __future__ import annotations

import asyncio
import gc

import pytest
from facade_parts import CHAT, EMBED, HELLO, vector

from aiosollol import (
    OllamaPool,
    PoolClosed,
)
from aiosollol.testing import FakeOllama, Fault

pytestmark = pytest.mark.anyio


async def test_a_closed_pool_says_so() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        pool = OllamaPool([fake.url])
        with pytest.raises(PoolClosed, match="not open yet"):
            await pool.embed("nomic-embed-text", "a")
        async with pool:
            await pool.embed("nomic-embed-text", "a")
        await pool.aclose()
        for call in (
            pool.embed("nomic-embed-text", "a"),
            pool.embed_batch("nomic-embed-text", ["a"]),
            pool.chat("llama3.2", HELLO),
            pool.refresh(),
            pool.start(),
        ):
            with pytest.raises(PoolClosed):
                await call


async def test_closing_ends_calls_that_are_under_way() -> None:
    async with FakeOllama(models=[EMBED, CHAT]) as fake:
        pool = OllamaPool([fake.url])
        await pool.start()
        await pool.refresh()
        fake.fault = Fault.HANG
        calls = [
            asyncio.ensure_future(call)
            for call in (
                pool.embed("nomic-embed-text", "a"),
                pool.embed_batch("nomic-embed-text", ["b", "c"]),
                pool.chat("llama3.2", HELLO),
                pool.chat("llama3.2", HELLO, stream=True),
            )
        ]
        while fake.in_flight < 2:  # the others wait for what these two load
            await asyncio.sleep(0)
        await pool.aclose(wait=0)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [PoolClosed] * 4


async def test_closing_waits_for_calls_that_are_under_way() -> None:
    async with FakeOllama(models=[EMBED, CHAT], seconds_per_item=0.05) as fake:
        pool = OllamaPool([fake.url])
        await pool.start()
        await pool.refresh()
        live = asyncio.ensure_future(pool.embed("nomic-embed-text", "a"))
        batch = asyncio.ensure_future(pool.embed_batch("nomic-embed-text", ["b", "c"]))
        while not fake.in_flight:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0)
        with pytest.raises(PoolClosed):  # nothing new begins
            await pool.embed("nomic-embed-text", "d")
        assert (await live).tobytes() == vector("a")
        assert len(await batch) == 2
        await closing


async def test_closing_waits_no_longer_than_it_is_told() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        pool = OllamaPool([fake.url], close_timeout=3600)
        await pool.start()
        await pool.embed("nomic-embed-text", "warm")
        fake.fault = Fault.HANG
        call = asyncio.ensure_future(pool.embed("nomic-embed-text", "a"))
        while not fake.in_flight:
            await asyncio.sleep(0)
        patient = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0)
        await pool.aclose(wait=0)  # a second one may be in more of a hurry
        await patient
        with pytest.raises(PoolClosed):
            await call


async def test_closing_leaves_no_task_and_no_connection() -> None:
    before = asyncio.all_tasks()
    async with FakeOllama(models=[EMBED, CHAT]) as fake:
        async with OllamaPool([fake.url]) as pool:
            await pool.embed_batch("nomic-embed-text", ["a", "b"])
            stream = await pool.chat("llama3.2", HELLO, stream=True)
            await anext(stream)
        gc.collect()  # an unclosed session or generator would warn, and warnings are errors
        while fake.in_flight:
            await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_a_cancellation_while_closing_does_not_keep_connections_open() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        pool = OllamaPool([fake.url])
        await pool.start()
        await pool.embed("nomic-embed-text", "a")
        closing = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        gc.collect()  # an open session would warn
        assert fake.in_flight == 0


async def test_cancelling_a_caller_cancels_only_its_requests() -> None:
    async with FakeOllama(models=[EMBED], slots=8) as fake, OllamaPool([fake.url]) as pool:
        await pool.embed("nomic-embed-text", "warm")  # who loads a model is carried to the end
        fake.fault = Fault.HANG
        doomed = asyncio.ensure_future(pool.embed("nomic-embed-text", "a"))
        batch = asyncio.ensure_future(pool.embed_batch("nomic-embed-text", ["x", "y"]))
        while fake.in_flight < 2:
            await asyncio.sleep(0)
        fake.fault = None
        other = asyncio.ensure_future(pool.embed("nomic-embed-text", "b"))
        for task in (doomed, batch):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await other).tobytes() == vector("b")
        while fake.in_flight:
            await asyncio.sleep(0)
        assert pool.get_stats()["cancelled_requests"] >= 2


async def test_a_chat_that_the_pools_end_cut_short_does_not_look_whole() -> None:
    async with FakeOllama(models=[CHAT]) as fake:
        async with OllamaPool([fake.url]) as pool:
            stream = await pool.chat("llama3.2", HELLO, stream=True)
            await anext(stream)
        with pytest.raises(PoolClosed):
            await anext(stream)
