"""`PromptStream`: how far it reads ahead, in which order it delivers, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from aiosollol import (
    GeneratedText,
    InvalidInput,
    ModelNotFound,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
)
from aiosollol.batch.prompts import Answered, PromptStream

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Model:
    """Answers when told to: `asked` has a future for each prompt in flight."""

    def __init__(self, window: int = 4) -> None:
        self.window = window
        self.asked: dict[str, asyncio.Future[GeneratedText]] = {}
        self.order: list[str] = []
        self.time = 0.0

    async def ask(self, prompt: str) -> Answered[GeneratedText]:
        self.order.append(prompt)
        answer = self.asked[prompt] = asyncio.get_running_loop().create_future()
        try:
            return Answered(await answer, "node")
        finally:
            del self.asked[prompt]

    def answer(self, prompt: str) -> None:
        fields = {"response": prompt.upper(), "prompt_eval_count": 2, "eval_count": 3}
        self.asked[prompt].set_result(GeneratedText.of(fields))

    def fail(self, prompt: str, error: Exception) -> None:
        self.asked[prompt].set_exception(error)

    def stream(self, source: Any, **options: Any) -> PromptStream[GeneratedText]:
        options = {"is_ordered": True, "stops_at_error": True, **options}
        return PromptStream(source, self.ask, lambda: self.window, lambda: self.time, **options)


async def turns() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_replies_come_in_the_order_of_their_prompts() -> None:
    model = Model()
    stream = model.stream(["a", "b", "c"])
    first = asyncio.ensure_future(anext(stream))
    await turns()
    for prompt in ("c", "b"):
        model.answer(prompt)
    await turns()
    assert not first.done()
    model.answer("a")
    assert [await first, *[reply async for reply in stream]] == ["A", "B", "C"]
    assert stream.index == 2


async def test_replies_out_of_order_come_as_they_are_answered() -> None:
    model = Model()
    stream = model.stream(["a", "b", "c"], is_ordered=False)
    first = asyncio.ensure_future(anext(stream))
    await turns()
    for prompt in ("c", "a", "b"):
        model.answer(prompt)
        await turns()
    received = [(await first, stream.index)]
    received += [(reply, stream.index) async for reply in stream]
    assert received == [("C", 2), ("A", 0), ("B", 1)]


async def test_no_more_are_in_flight_than_the_window() -> None:
    model = Model(window=3)
    stream = model.stream(str(number) for number in range(10))
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    assert list(model.asked) == ["0", "1", "2"]
    model.answer("1")
    await turns()
    assert list(model.asked) == ["0", "2", "3"]
    model.window = 5
    model.answer("2")
    await turns()
    assert len(model.asked) == 5
    reader.cancel()
    await asyncio.wait([reader])
    assert not model.asked


async def test_the_source_is_read_no_faster_than_replies_are_consumed() -> None:
    model = Model(window=2)
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for read in range(1, 1001):
            yield str(read)

    stream = model.stream(source())
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    while model.asked:
        for prompt in list(model.asked):
            model.answer(prompt)
        await turns()
    assert await reader == "1"
    assert read == 64 + 1  # one was delivered
    await stream.aclose()


@pytest.mark.parametrize("is_ordered", [True, False], ids=["ordered", "as they come"])
async def test_an_error_is_raised_or_delivered_as_none(*, is_ordered: bool) -> None:
    for stops in (True, False):
        model = Model()
        stream = model.stream(["a", "b"], is_ordered=is_ordered, stops_at_error=stops)
        reader = asyncio.ensure_future(anext(stream))
        await turns()
        error = NoNodeAvailable("all failed", {})
        model.fail("a", error)
        if stops:
            with pytest.raises(NoNodeAvailable):
                await reader
            await turns()
            assert not model.asked
            continue
        assert await reader is None
        model.answer("b")
        assert [reply async for reply in stream] == ["B"]
        assert stream.errors == {0: error}
        assert (stream.report.replies, stream.report.failed) == (1, 1)


@pytest.mark.parametrize(
    "error", [ModelNotFound("no", {}), PoolClosed("closed")], ids=["no such model", "closed"]
)
async def test_what_would_fail_every_prompt_ends_the_stream(error: Exception) -> None:
    model = Model()
    stream = model.stream(["a", "b"], stops_at_error=False)
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    model.fail("a", error)
    with pytest.raises(type(error)):
        await reader
    assert not model.asked


async def test_a_prompt_waits_while_the_queue_of_the_pool_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("aiosollol.batch.prompts.anyio.sleep", pause)
    model = Model()
    stream = model.stream(["a"])
    reader = asyncio.ensure_future(anext(stream))
    for _ in range(6):
        await turns()
        model.fail("a", PoolSaturated("full"))
    await turns()
    model.answer("a")
    assert await reader == "A"
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0]
    assert model.order == ["a"] * 7


async def test_a_prompt_does_not_wait_for_the_queue_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model()

    async def pause(seconds: float) -> None:
        model.time += 1000.0

    monkeypatch.setattr("aiosollol.batch.prompts.anyio.sleep", pause)
    stream = model.stream(["a"])
    reader = asyncio.ensure_future(anext(stream))
    for _ in range(5):
        await turns()
        model.fail("a", PoolSaturated("full"))
    with pytest.raises(PoolSaturated):
        await reader


async def test_the_sources_error_comes_after_the_replies_before_it() -> None:
    model = Model()

    def source() -> Iterator[str]:
        yield "a"
        raise OSError("the file is gone")

    stream = model.stream(source())
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    model.answer("a")
    assert await reader == "A"
    with pytest.raises(OSError, match="the file is gone"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_an_async_source_is_closed_with_the_stream() -> None:
    is_closed = False

    async def source() -> AsyncIterator[str]:
        nonlocal is_closed
        try:
            for number in range(100):
                yield str(number)
        finally:
            is_closed = True

    model = Model()
    async with model.stream(source()) as stream:
        reader = asyncio.ensure_future(anext(stream))
        await turns()
        model.answer("0")
        assert await reader == "0"
    assert is_closed
    assert not model.asked


async def test_closing_ends_a_reader_that_waits() -> None:
    model = Model()
    stream = model.stream(["a"])
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    await stream.aclose(PoolClosed("the pool was closed"))
    with pytest.raises(PoolClosed):
        await reader
    await stream.aclose()
    assert not model.asked


async def test_an_error_of_on_progress_is_the_callers() -> None:
    model = Model()

    def on_progress(settled: int) -> None:
        raise ZeroDivisionError

    stream = model.stream(["a", "b"], on_progress=on_progress)
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    model.answer("a")
    assert await reader == "A"
    with pytest.raises(ZeroDivisionError):
        await anext(stream)


async def test_the_report_counts_replies_tokens_and_nodes() -> None:
    model = Model()
    seen: list[int] = []
    stream = model.stream(["a", "b"], on_progress=seen.append)
    reader = asyncio.ensure_future(anext(stream))
    await turns()
    model.time = 2.0
    model.answer("a")
    model.answer("b")
    await reader
    await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    model.time = 9.0
    assert seen == [1, 2]
    report = stream.report
    assert (report.replies, report.failed, report.seconds) == (2, 0, 2.0)
    assert (report.prompt_tokens, report.reply_tokens, report.tokens_per_second) == (4, 6, 3.0)
    assert str(report) == "2 replies in 2.00 s (3 tokens/s): node 2"


@pytest.mark.parametrize("source", ["text", b"text", None, 7], ids=repr)
async def test_what_is_no_iterable_of_prompts_is_refused(source: object) -> None:
    with pytest.raises(InvalidInput, match="prompts must be an iterable"):
        Model().stream(source)


async def test_no_prompts_are_no_replies() -> None:
    assert [reply async for reply in Model().stream([])] == []
