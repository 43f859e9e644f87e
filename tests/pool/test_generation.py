"""Chats and completions of `OllamaPool`, whole and streamed, over fake servers."""

from __future__ import annotations

import asyncio

import pytest
from facade_parts import CHAT, HELLO

from aiosollol import (
    ChatReply,
    OllamaPool,
    StreamCutOff,
)
from aiosollol.testing import FakeOllama, Fault

pytestmark = pytest.mark.anyio


async def test_chat_and_generate() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        reply = await pool.chat("llama3.2", HELLO)
        assert reply.message.content == reply["message"]["content"] == str(reply) != ""
        assert reply.done is True
        text = await pool.generate("llama3.2", "say something", options={"seed": 1})
        assert text == text.answer.response
        assert text.answer.done


async def test_a_streamed_chat_says_the_same_as_a_whole_one() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        whole = await pool.chat("llama3.2", HELLO)
        stream = await pool.chat("llama3.2", HELLO, stream=True)
        parts = [part async for part in stream]
        assert "".join(map(str, parts)) == str(whole)
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert stream.parts == len(parts)
        pieces = [piece async for piece in await pool.generate("llama3.2", "x", stream=True)]
        assert "".join(pieces) == await pool.generate("llama3.2", "x")


async def test_a_replys_message_can_be_sent_back() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        reply = await pool.chat("llama3.2", HELLO)
        again = await pool.chat("llama3.2", [*HELLO, reply.message, *HELLO])
        assert isinstance(again, ChatReply)


@pytest.mark.parametrize("fault", [Fault.STREAM_CUT, Fault.STREAM_ERROR])
async def test_a_stream_that_breaks_raises_after_what_was_delivered(fault: Fault) -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        fake.fault = fault
        parts = []
        stream = await pool.chat("llama3.2", HELLO, stream=True)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - looked at below
            async for part in stream:
                parts.append(part)  # noqa: PERF401 - what came before the error counts
        assert parts
        if fault is Fault.STREAM_CUT:
            assert isinstance(caught.value, StreamCutOff)
            assert caught.value.delivered == len(parts)
        assert pool.get_stats()["failed_requests"] == 1


async def test_a_chat_fails_over_before_its_first_part() -> None:
    async with (
        FakeOllama(models=[CHAT]) as one,
        FakeOllama(models=[CHAT]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        await pool.refresh()
        one.fault = Fault.ERROR_500
        for _ in range(3):
            assert str(await pool.chat("llama3.2", HELLO))
            parts = [part async for part in await pool.chat("llama3.2", HELLO, stream=True)]
            assert parts[-1].done


async def test_leaving_a_stream_cancels_it() -> None:
    async with (
        FakeOllama(models=[CHAT], seconds_per_chat_token=0.01) as fake,
        OllamaPool([fake.url]) as pool,
    ):
        async with await pool.chat("llama3.2", HELLO, stream=True) as stream:
            await anext(stream)
        while fake.in_flight:
            await asyncio.sleep(0)
        stats = pool.get_stats()
        assert (stats["cancelled_requests"], stats["successful_requests"]) == (1, 0)


async def test_a_stream_that_is_dropped_gives_its_node_back() -> None:
    async with (
        FakeOllama(models=[CHAT], seconds_per_chat_token=0.01) as fake,
        OllamaPool([{"url": fake.url, "max_concurrency": 1}]) as pool,
    ):
        async for _ in await pool.chat("llama3.2", HELLO, stream=True):
            break
        while fake.in_flight:
            await asyncio.sleep(0)
        assert str(await pool.chat("llama3.2", HELLO))
        stats = pool.get_stats()
        assert (stats["cancelled_requests"], stats["successful_requests"]) == (1, 1)
