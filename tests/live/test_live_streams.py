"""Streams of live requests: cut off, late, stalled, left."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from live_cluster import (
    cluster,
    virtual_time,
)
from passing_faults import PASSING

from aiosollol.errors import (
    ConnectionLost,
    NodeTimeout,
    PoolClosed,
    RunnerFailed,
    StreamCutOff,
)
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Streams.


@pytest.mark.parametrize(
    "fault",
    [
        *(each for each in PASSING if each is not Fault.CUT_JSON),
        Fault.STREAM_CUT,
        Fault.STREAM_ERROR,
    ],
)
async def test_a_stream_fails_over_before_its_first_part(fault: Fault) -> None:
    async with cluster(a={}, b={}, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = fault
        stream = await made.stream("one")  # of a prompt of one word, half is nothing
        assert [str(part) async for part in stream] == ["one", ""]
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault.STREAM_CUT, None),
        (Fault.STREAM_ERROR, RunnerFailed),
        (Fault.RESET, ConnectionLost),
    ],
)
async def test_afterwards_the_error_says_how_much_was_delivered(
    fault: Fault, cause: type[Exception] | None
) -> None:
    async with cluster(a={}, b={}) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = fault
        stream = await made.stream("one two three four five six")
        parts: list[str] = []
        for _ in range(2):  # and again, who reads on must not take it for the end
            with pytest.raises(StreamCutOff) as caught:
                async for part in stream:
                    parts.append(str(part))  # noqa: PERF401 - what came before counts
            assert len(parts) == caught.value.delivered == stream.parts == 3
        if cause is not None:
            assert isinstance(caught.value.__cause__, cause)
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_a_first_part_that_is_late_is_the_nodes_failure() -> None:
    async with cluster(a={}, b={}, strategy="priority", first_byte_timeout=2.0) as made:
        await made.warm_up()
        made.node("a").standing = type(made.node("a").standing)()
        made["a"].fail_next(Fault.HANG)
        before = made.stats()
        stream = await made.stream("one two")
        assert [str(part) async for part in stream] == ["one", " two", ""]
        after = made.stats()
        lost = sum(after[key] - before[key] for key in ("failed_requests", "cancelled_requests"))
        assert lost == 1
        await made.rest()


async def test_with_one_node_a_late_first_part_is_an_error() -> None:
    async with cluster(a={}, first_byte_timeout=2.0, max_retries=0) as made:
        await made.warm_up()
        made["a"].fault = Fault.HANG
        with pytest.raises(NodeTimeout, match="nothing within 2 s"):
            await made.stream()
        assert made.stats()["failed_requests"] == 1
        assert made.stats()["cancelled_requests"] == 0
        made["a"].fault = None
        await made.rest()


async def test_a_slow_stream_is_not_late_once_it_has_begun() -> None:
    async with cluster(a={"seconds_per_chat_token": 5.0}, first_byte_timeout=6.0) as made:
        stream = await made.stream("one two three")
        assert len([part async for part in stream]) == 4
        assert anyio.current_time() == pytest.approx(15.0)
        assert made.stats()["successful_requests"] == 1
        await made.rest()


async def test_a_stream_takes_no_longer_than_the_call_may() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0}) as made:
        stream = await made.stream("one two three four five six", timeout=3.5)
        with pytest.raises(StreamCutOff, match="after 3 parts") as caught:
            async for _ in stream:
                pass
        assert isinstance(caught.value.__cause__, NodeTimeout)
        assert anyio.current_time() == pytest.approx(3.5)
        await made.rest()


async def test_a_stream_that_stalls_ends_long_before_its_timeout() -> None:
    async with cluster(a={"seconds_per_chat_token": 100.0}) as made:
        stream = await made.stream("one two three", timeout=300.0)
        await anext(stream)
        began = anyio.current_time()
        with pytest.raises(StreamCutOff, match="sent nothing for 60 s, after 1 parts"):
            await anext(stream)
        assert anyio.current_time() == pytest.approx(began + 60.0)
        await made.rest()


async def test_a_stream_whose_reader_is_slow_does_not_stall() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0}) as made:
        stream = await made.stream("one two three", timeout=1000.0)
        async for _ in stream:
            await anyio.sleep(100.0)
        await made.rest()


async def test_a_stream_whose_reader_is_cancelled_does_not_look_whole_afterwards() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0}) as made:
        stream = await made.stream("one two three")
        await anext(stream)
        with anyio.move_on_after(0.5):
            await anext(stream)
        with pytest.raises(StreamCutOff, match="cancelled"):
            await anext(stream)
        assert made.stats()["cancelled_requests"] == 1
        await made.rest()


async def test_a_stream_that_is_closed_or_left_gives_its_place_back() -> None:
    async with cluster(a={"seconds_per_chat_token": 1.0, "max_concurrency": 1}) as made:
        async with await made.stream("one two three"):
            assert made.node("a").in_flight == 1
        assert made.node("a").in_flight == 0
        stream = await made.stream("one two three")
        await stream.aclose()
        assert [part async for part in stream] == []
        await made.rest()


async def test_the_pools_end_during_a_stream_that_is_waited_for() -> None:
    errors: list[Exception] = []
    async with (
        anyio.create_task_group() as calls,
        cluster(a={"seconds_per_chat_token": 10.0, "slots": 2}) as made,
    ):
        waiting, idle = await made.stream("one two three"), await made.stream("one two")

        async def read() -> None:
            try:
                async for _ in waiting:
                    pass
            except Exception as error:
                errors.append(error)

        calls.start_soon(read)
        await anyio.sleep(1.0)
        began = anyio.current_time()
        await made.close()
    assert [type(each) for each in errors] == [PoolClosed]
    with pytest.raises(PoolClosed):
        await anext(idle)
    assert anyio.current_time() == began
    made.check_rest()
    assert made.stats()["failed_requests"] == 0, "it was our own end, and no fault of the node"


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    log = logging.getLogger("aiosollol")
    before = log.level
    yield
    log.setLevel(before)
