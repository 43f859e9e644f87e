"""`pool.embed_stream`: order, bounded memory, back-pressure, and leaving early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from aiosollol import (
    BadRequest,
    BatchError,
    InvalidInput,
    ModelNotFound,
    NodeSpec,
    OllamaPool,
    PoolClosed,
)
from aiosollol.batch.stream import SEGMENT_ITEMS
from aiosollol.testing import FakeModel, FakeTransport, Fault, fake_vector

pytestmark = pytest.mark.anyio

MODEL = FakeModel("nomic-embed-text", dim=4)


def pool_of(*fakes: FakeTransport) -> OllamaPool:
    by_name = {fake.name: fake for fake in fakes}
    specs = [NodeSpec(f"http://{name}.test", name=name) for name in by_name]
    return OllamaPool(specs, transport_factory=lambda spec: by_name[spec.name])


def vector(text: str) -> bytes:
    return bytes(fake_vector(MODEL.digest, text, 4))


class Source:
    """Texts, and how many of them were read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0

    def __iter__(self) -> Iterator[str]:
        for index in range(self.count):
            self.read += 1
            yield f"text {index}"


async def test_vectors_come_in_input_order_over_many_segments() -> None:
    count = 3 * SEGMENT_ITEMS + 17
    async with pool_of(
        FakeTransport("a", models=[MODEL]), FakeTransport("b", models=[MODEL])
    ) as pool:
        stream = pool.embed_stream("nomic-embed-text", Source(count))
        index = 0
        async for row in stream:
            assert row.tobytes() == vector(f"text {index}")
            index += 1
        assert index == stream.delivered == count
        assert not stream.errors


async def test_the_source_is_read_no_further_than_needed() -> None:
    source = Source(100 * SEGMENT_ITEMS)
    async with pool_of(FakeTransport("a", models=[MODEL])) as pool:
        async with pool.embed_stream("nomic-embed-text", source) as stream:
            await anext(stream)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert source.read <= 5 * SEGMENT_ITEMS
        read = source.read
        for _ in range(100):
            await asyncio.sleep(0)
        assert source.read == read, "after leaving, nothing is read any more"


async def test_what_has_come_is_embedded_while_an_async_source_makes_us_wait() -> None:
    delivered = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield "first"
        await delivered.wait()  # whoever wants the second before giving the first waits for ever
        yield "second"

    async with pool_of(FakeTransport("a", models=[MODEL])) as pool, asyncio.timeout(10):
        stream = pool.embed_stream("nomic-embed-text", source())
        first = await anext(stream)
        assert first.tobytes() == vector("first")
        delivered.set()
        assert [row.tobytes() async for row in stream] == [vector("second")]


async def test_no_texts_give_no_vectors() -> None:
    async with pool_of(FakeTransport("a", models=[MODEL])) as pool:
        assert [row async for row in pool.embed_stream("nomic-embed-text", [])] == []


async def test_a_bad_text_ends_the_stream_or_is_named() -> None:
    texts = ["fine", "arsenic", "\ud800", "also fine"]
    async with pool_of(FakeTransport("a", models=[MODEL], poison={"arsenic"})) as pool:
        stream = pool.embed_stream("nomic-embed-text", texts, on_error="return")
        rows = [row async for row in stream]
        assert [
            row.tobytes() == vector(text) for row, text in zip(rows[::3], texts[::3], strict=True)
        ]
        assert set(stream.errors) == {1, 2}
        assert isinstance(stream.errors[1], BadRequest)
        assert isinstance(stream.errors[2], InvalidInput)
        with pytest.raises(BatchError) as caught:
            await anext(pool.embed_stream("nomic-embed-text", texts))
        assert set(caught.value.errors) == {1, 2}


async def test_what_the_source_raises_arrives_after_what_came_before() -> None:
    def broken() -> Iterator[str]:
        yield "a"
        yield "b"
        raise OSError("the disk is gone")

    async with pool_of(FakeTransport("a", models=[MODEL])) as pool:
        seen = []
        with pytest.raises(OSError, match="disk"):
            async for row in pool.embed_stream("nomic-embed-text", broken()):
                seen.append(row.tobytes())  # noqa: PERF401 - what came before the error counts
        assert seen == [vector("a"), vector("b")]


async def test_an_unknown_model_is_told_at_the_first_vector() -> None:
    async with pool_of(FakeTransport("a", models=[MODEL])) as pool:
        with pytest.raises(ModelNotFound):
            await anext(pool.embed_stream("typo", ["a"]))
        for texts in ("one string", 5):
            with pytest.raises(InvalidInput, match="iterable of strings"):
                pool.embed_stream("nomic-embed-text", texts)  # type: ignore[arg-type]


async def test_leaving_early_cancels_what_is_under_way() -> None:
    before = asyncio.all_tasks()
    fake = FakeTransport("a", models=[MODEL])
    async with pool_of(fake) as pool:
        running = asyncio.all_tasks()
        async with pool.embed_stream("nomic-embed-text", Source(50_000)) as stream:
            await anext(stream)
        assert asyncio.all_tasks() <= running
        assert fake.in_flight == 0
    assert asyncio.all_tasks() <= before


@pytest.mark.parametrize("bad", [None, 5, b"x"])
async def test_what_is_no_text_is_an_error_of_its_own_and_not_the_end(bad: object) -> None:
    texts = ["a", bad, "b"]
    async with pool_of(FakeTransport("a", models=[MODEL])) as pool:
        stream = pool.embed_stream("nomic-embed-text", texts, on_error="return")  # type: ignore[arg-type]
        rows = [row.tobytes() async for row in stream]
        assert (rows[0], rows[2]) == (vector("a"), vector("b"))
        assert set(stream.errors) == {1}


async def silent() -> AsyncIterator[str]:
    await asyncio.get_running_loop().create_future()
    yield "never"


@pytest.mark.parametrize("is_source_slow", [True, False])
async def test_closing_the_pool_ends_a_stream_that_is_waited_for(is_source_slow: bool) -> None:
    before = asyncio.all_tasks()
    fake = FakeTransport("a", models=[MODEL])
    async with pool_of(fake) as pool:
        await pool.refresh()
        fake.fault = Fault.HANG
        stream = pool.embed_stream("nomic-embed-text", silent() if is_source_slow else ["a"])
        consumer = asyncio.ensure_future(anext(stream))
        while not (fake.in_flight or is_source_slow):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(PoolClosed):
        await consumer
    assert asyncio.all_tasks() <= before


@pytest.mark.parametrize("is_source_slow", [True, False])
async def test_closing_a_stream_from_another_task_ends_its_iteration(is_source_slow: bool) -> None:
    fake = FakeTransport("a", models=[MODEL])
    async with pool_of(fake) as pool:
        await pool.refresh()
        fake.fault = Fault.HANG
        stream = pool.embed_stream("nomic-embed-text", silent() if is_source_slow else ["a"])

        async def consume() -> int:
            return len([row async for row in stream])

        consumer = asyncio.ensure_future(consume())
        while not (fake.in_flight or is_source_slow):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await stream.aclose()
        assert await consumer == 0


async def test_a_stream_that_was_left_open_is_closed_with_the_pool() -> None:
    before = asyncio.all_tasks()
    async with pool_of(FakeTransport("a", models=[MODEL])) as pool:
        async for _ in pool.embed_stream("nomic-embed-text", Source(50_000)):
            break
    assert asyncio.all_tasks() <= before
