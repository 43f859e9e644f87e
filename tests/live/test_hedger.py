"""What is late, or was in trouble, costs callers little: in virtual time, over fake nodes."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable
from typing import Any

import anyio
import pytest
from live_cluster import EMBED, Cluster, cluster, gather, vector, virtual_time

from aiosollol.core.routing.circuit_breaker import FIRST_EJECTION, LONGEST_EJECTION
from aiosollol.core.routing.node_health import LOOK_SECONDS, RETURN_SECONDS
from aiosollol.errors import NodeError, NoNodeAvailable
from aiosollol.testing import Fault, fake_vector

pytestmark = pytest.mark.anyio

PACE: dict[str, Any] = {"seconds_per_item": 0.1, "seconds_per_chat_token": 0.1}
NODES: dict[str, Any] = {
    "a": {**PACE, "priority": 0},
    "b": {**PACE, "priority": 1},
    "c": {**PACE, "priority": 2},
}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def took(call: Awaitable[object]) -> float:
    began = anyio.current_time()
    await call
    return anyio.current_time() - began


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_chat_on_a_node_that_hangs_is_asked_of_another_one_too(streamed: bool) -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = Fault.HANG
        # A chat of four words takes 0.4 s; ten times that is as good as a failure.
        if streamed:
            began = anyio.current_time()
            async with await made.stream():
                assert anyio.current_time() - began == pytest.approx(4.1, abs=0.01)
        else:
            assert await took(made.chat()) == pytest.approx(4.4, abs=0.01)
        assert made["a"].in_flight == 0
        assert made.node("a").breaker.in_row == 1
        made["a"].fault = None


async def test_a_stream_that_won_is_kept_by_its_reader_alone() -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = Fault.HANG
        stream = await made.stream()
        assert stream.node == "b"
        await stream.aclose()
        kept = weakref.ref(stream)
        del stream
        assert kept() is None, "a reader that drops it would wait for the garbage collector"
        made["a"].fault = None
        await made.rest()


async def test_requests_that_another_node_answers_at_the_same_moment_all_count() -> None:
    room = {"max_concurrency": 8, "slots": 8}
    nodes = {"a": {**PACE, **room, "priority": 0}, "b": {**PACE, **room, "priority": 1}}
    async with cluster(**nodes, strategy="priority", retry_budget=5.0) as made:
        await made.warm_up(times=3)
        for _ in range(20):  # so that several at once may be sent to a node
            await gather(*[made.embed] * 12)
        made["a"].fault = Fault.HANG
        before = made["a"].requests
        answers = await gather(*[made.embed] * 6)
        assert answers == [vector()] * 6
        assert made["a"].requests == before + 6
        assert made.node("a").breaker.opens_at is not None
        made["a"].fault = None
        await made.rest()


async def test_a_chat_that_takes_long_is_not_given_up_for_that() -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up(times=3)
        # Ten times as long as the ones before: the second begins at 4 s, and the first wins.
        reply = await made.chat(" ".join(["word"] * 60))
        assert len(str(reply).split()) == 60
        await made.rest()
        assert made["a"].cancelled == 0
        assert made["b"].cancelled == 1
        assert made.node("a").breaker.in_row == 0


async def test_nobody_else_no_chase() -> None:
    async with cluster(a=PACE) as made:
        await made.warm_up()
        made["a"].fault = Fault.HANG
        before = made["a"].requests
        assert await took(_failing(made)) == pytest.approx(30.0, abs=0.01)
        assert made["a"].requests == before + 1
        made["a"].fault = None


async def _failing(made: Cluster) -> None:
    with pytest.raises((NodeError, NoNodeAvailable)):
        await made.chat(timeout=30.0)


async def test_what_hangs_again_and_again_is_left_out_and_costs_less_each_time() -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up(times=20)
        made["a"].fault = Fault.HANG
        seconds = [await took(made.embed()) for _ in range(40)]
        assert made.node("a").breaker.opens_at is not None
        assert sum(each > 0.11 for each in seconds) <= 7  # five in a row, and probes
        # A probe is a caller's request: it waits for twice what others take, not for ten times.
        await anyio.sleep(LONGEST_EJECTION)
        assert await took(made.embed()) == pytest.approx(0.3, abs=0.05)
        assert made.node("a").breaker.opens_at is not None
        made["a"].fault = None
        await anyio.sleep(LONGEST_EJECTION)
        assert [await took(made.embed()) for _ in range(2)] == pytest.approx([0.1, 0.1])
        assert made.node("a").breaker.opens_at is None
        await made.rest()


async def test_a_stream_that_was_lost_opens_the_breaker_and_none_is_the_probe() -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = Fault.STREAM_CUT
        with pytest.raises(NodeError):
            async for _ in await made.stream():
                pass
        assert made.node("a").breaker.opens_at is not None
        await anyio.sleep(FIRST_EJECTION)
        async with await made.stream() as stream:  # the fault is still there: this went elsewhere
            assert stream.node == "b"
        assert await made.embed() == fake_vector(EMBED.digest, "a text", EMBED.dim)
        assert made.node("a").breaker.passed == 1
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize("fault", [Fault.BUSY_503, Fault.ERROR_500])
async def test_a_node_in_trouble_is_looked_at_soon_whatever_its_prospects(fault: Fault) -> None:
    async with cluster(**NODES) as made:
        await made.warm_up(times=3)
        made["a"].fail_next(fault, 3)
        while made["a"].log[-1].status == 200:
            await made.embed()
        failed = made["a"].requests
        await anyio.sleep(LOOK_SECONDS / 2)
        assert made.node("a").standing.is_stained
        for _ in range(3):
            await anyio.sleep(LOOK_SECONDS)
            await made.embed()
        assert made["a"].requests == failed + 3
        assert not made.node("a").standing.is_stained
        assert not made.state.stained
        await made.rest()


async def test_a_node_that_was_down_has_its_share_again_within_ten_seconds() -> None:
    async with cluster(**NODES, strategy="round_robin") as made:
        await made.warm_up()
        made["a"].fault = Fault.REFUSE
        while not made.node("a").state.is_down:
            await made.embed()
        await anyio.sleep(60.0)
        made["a"].fault = None
        await made.monitor.probe("a")
        assert made.node("a").breaker.phase(anyio.current_time()) == "half_open"
        for _ in range(2):
            await made.embed()
        assert made.node("a").breaker.opens_at is None
        await anyio.sleep(RETURN_SECONDS)
        before = made["a"].requests
        for _ in range(30):
            await made.embed()
        assert made["a"].requests - before == 10


async def test_vectors_of_another_length_than_the_node_promises_are_refused() -> None:
    async with cluster(**NODES, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = Fault.WRONG_DIM
        for _ in range(10):
            assert len(await made.embed()) == 4 * EMBED.dim
        assert made.stats()["failed_requests"] >= 5
        made["a"].fault = None
