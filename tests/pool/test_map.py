"""`OllamaPool.map`, `chat_batch` and `generate_batch` over fake servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from facade_parts import CHAT, HELLO

from aiosollol import (
    ChatReply,
    GeneratedText,
    InvalidInput,
    ModelNotFound,
    OllamaPool,
    PoolClosed,
    Replies,
    ReplyBatchError,
)
from aiosollol.testing import FakeOllama, FakeTransport, Fault

pytestmark = pytest.mark.anyio

MODEL = "llama3.2"
PROMPTS = [f"prompt {number}" for number in range(40)]


async def asynchronous(prompts: Iterable[str]) -> AsyncIterator[str]:
    for prompt in prompts:
        yield prompt


async def test_replies_are_those_of_single_calls_in_order() -> None:
    async with (
        FakeOllama(models=[CHAT]) as one,
        FakeOllama(models=[CHAT]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        single = [await pool.generate(MODEL, prompt) for prompt in PROMPTS]
        assert [text async for text in pool.map(MODEL, PROMPTS)] == single
        assert [text async for text in pool.map(MODEL, asynchronous(PROMPTS))] == single
        stream = pool.map(MODEL, iter(PROMPTS), ordered=False)
        unordered = [(stream.index, text) async for text in stream]
        assert [text for _, text in sorted(unordered)] == single
        assert sum(stream.report.nodes.values()) == stream.report.replies == len(PROMPTS)
        assert set(stream.report.nodes) <= set(pool.view.nodes)
        texts = await pool.generate_batch(MODEL, PROMPTS)
        assert texts == single
        counts = [text.answer["eval_count"] for text in single]
        assert texts.report.reply_tokens == sum(counts)


@pytest.mark.parametrize(
    "prompt",
    ["hello there", HELLO, {"messages": HELLO}, {"messages": HELLO, "options": {"seed": 1}}],
    ids=["text", "messages", "mapping", "mapping with options"],
)
async def test_a_prompt_for_a_chat_has_three_forms(prompt: Any) -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        due = str(await pool.chat(MODEL, HELLO))
        (reply,) = await pool.chat_batch(MODEL, [prompt])
        assert isinstance(reply, ChatReply)
        assert str(reply) == due
        assert [str(reply) async for reply in pool.map(MODEL, [prompt], kind="chat")] == [due]


class RecordingTransport(FakeTransport):
    """Keeps the bodies of the requests to /api/generate that have a prompt, by prompt."""

    def __init__(self) -> None:
        super().__init__(models=[CHAT])
        self.bodies: dict[str, dict[str, Any]] = {}

    async def request(
        self, method: str, path: str, body: bytes | None = None, **options: Any
    ) -> bytes:
        fields = json.loads(body) if body and path == "/api/generate" else {}
        if fields.get("prompt"):
            self.bodies[fields["prompt"]] = fields
        return await super().request(method, path, body, **options)


async def test_fields_hold_for_all_prompts_unless_one_has_its_own() -> None:
    transport = RecordingTransport()
    async with OllamaPool(["http://node"], transport_factory=lambda _: transport) as pool:
        prompts = ["a", {"prompt": "b", "system": "Be long.", "images": [b"png"]}]
        await pool.generate_batch(MODEL, prompts, system="Be short.", options={"seed": 7})
    shared = {"model": MODEL, "stream": False, "options": {"seed": 7}}
    assert transport.bodies == {
        "a": {**shared, "prompt": "a", "system": "Be short."},
        "b": {**shared, "prompt": "b", "system": "Be long.", "images": ["cG5n"]},
    }


async def test_a_bad_prompt_fails_alone() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        prompts: list[Any] = ["a", 7, {"system": "no prompt"}, {"prompt": "b", "temp": 1}, "c"]
        replies = await pool.generate_batch(MODEL, prompts, on_error="return")
        assert isinstance(replies, Replies)
        assert [reply is None for reply in replies] == [False, True, True, True, False]
        assert {index: type(error) for index, error in replies.errors.items()} == dict.fromkeys(
            (1, 2, 3), InvalidInput
        )
        assert replies.report.failed == 3
        with pytest.raises(ReplyBatchError, match="3 of 5 prompts have no reply") as caught:
            await pool.generate_batch(MODEL, prompts)
        assert caught.value.replies == replies
        assert "prompt 3: a prompt has no 'temp'" in str(caught.value)
        received = []
        with pytest.raises(InvalidInput, match="a prompt must be a str or a mapping, not int"):
            async for reply in pool.map(MODEL, prompts):
                received.append(reply)  # noqa: PERF401 - what came before the error counts
        assert received == replies[:1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "embed"}, "kind must be"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"priority": 11}, "priority must be"),
        ({"timeout": -1}, "timeout must be"),
        ({"options": {1: 2}}, "sent as JSON"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_bad_arguments_are_refused_before_anything_is_sent(
    given: dict[str, Any], words: str
) -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(InvalidInput, match=words):
            pool.map(MODEL, ["a"], **given)
        assert fake.requests == 0


async def test_an_unknown_model_ends_the_iteration() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(ModelNotFound):
            await pool.generate_batch("unknown", PROMPTS, on_error="return")


async def test_a_node_that_dies_loses_no_prompt() -> None:
    async with (
        FakeOllama(models=[CHAT]) as one,
        FakeOllama(models=[CHAT]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        seen = 0

        def on_progress(settled: int, total: int | None) -> None:
            nonlocal seen
            assert total == len(PROMPTS)
            seen = settled
            if settled == 10:
                one.fault = Fault.REFUSE

        replies = await pool.generate_batch(MODEL, PROMPTS, on_progress=on_progress)
        assert None not in replies
        assert seen == len(PROMPTS)


async def test_closing_the_pool_ends_the_stream() -> None:
    async with FakeOllama(models=[CHAT]) as fake:
        pool = OllamaPool([fake.url], close_timeout=0.0)
        await pool.start()
        assert isinstance(await pool.generate(MODEL, "a"), GeneratedText)
        fake.fault = Fault.HANG
        stream = pool.map(MODEL, PROMPTS)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await pool.aclose()
        with pytest.raises(PoolClosed):
            await reader


async def test_leaving_the_stream_cancels_its_requests() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        async with pool.map(MODEL, PROMPTS) as stream:
            assert await anext(stream)
        assert not any(usage.using for usage in pool.usage().values())
