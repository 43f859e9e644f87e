"""Live requests while a batch runs on the same nodes."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import MODEL, TALKER, Cluster, cluster, virtual_time, words

from aiosollol.core.routing.wait_queue import HIGHEST
from aiosollol.core.scheduling.live_traffic import LIVE_LATENCY_TARGET, LIVE_SECONDS
from aiosollol.testing import FakeModel

pytestmark = pytest.mark.anyio

PER_TEXT = 0.01


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def measured(made: Cluster) -> None:
    await made.admin.warm(MODEL, None)
    await made.warm_up(times=3)
    await made.embed_batch(words(200 * len(made.transports)))


async def timed(call: Any, seconds: list[float]) -> None:
    began = anyio.current_time()
    await call()
    seconds.append(anyio.current_time() - began)


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("part", [0.025, 0.3], ids=["few", "many"])
async def test_a_live_request_waits_for_two_short_chunks_at_most(nodes: int, part: float) -> None:
    count, seconds = 200, list[float]()
    pause = PER_TEXT / nodes / part
    async with cluster(**{f"n{n}": {"seconds_per_item": PER_TEXT} for n in range(nodes)}) as made:
        await measured(made)
        async with anyio.create_task_group() as group:
            batch = partial(made.embed_batch, words(20_000))
            group.start_soon(batch)
            await anyio.sleep(5.0)
            await made.embed()
            await anyio.sleep(2.0)  # until the long chunks in flight are answered
            for number in range(count):
                group.start_soon(timed, partial(made.embed, f"live {number}"), seconds)
                await anyio.sleep(pause)
            await anyio.sleep(1.0)
            group.cancel_scope.cancel()
    assert len(seconds) == count
    assert sum(seconds) / count <= 2 * LIVE_LATENCY_TARGET + PER_TEXT
    assert max(seconds) <= 0.25


async def test_the_batch_loses_only_the_time_of_the_live_requests() -> None:
    async with cluster(a={"seconds_per_item": PER_TEXT}) as made:
        await measured(made)
        alone, beside = list[float](), list[float]()
        await timed(partial(made.embed_batch, words(3000)), alone)
        async with anyio.create_task_group() as group:
            group.start_soon(timed, partial(made.embed_batch, words(3000)), beside)
            for number in range(200):
                group.start_soon(made.embed, f"live {number}")
                await anyio.sleep(0.1)
        assert beside[0] <= 1.03 * (alone[0] + 200 * PER_TEXT)
        await made.rest()


async def test_chunks_are_long_again_after_the_last_live_request() -> None:
    async with cluster(a={"seconds_per_item": PER_TEXT}) as made:
        await measured(made)
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed_batch, words(20_000))
            await anyio.sleep(5.0)
            requests = []
            for pause in (LIVE_SECONDS, 5.0):
                await made.embed()
                await anyio.sleep(1.0)
                before = made["a"].requests
                await anyio.sleep(pause - 2.0)
                requests.append((made["a"].requests - before) / (pause - 2.0))
            await anyio.sleep(LIVE_SECONDS)
            before = made["a"].requests
            await anyio.sleep(10.0)
            requests.append((made["a"].requests - before) / 10.0)
            group.cancel_scope.cancel()
    assert requests == pytest.approx([20.0, 20.0, 2.0], rel=0.1)


async def test_chats_on_other_nodes_do_not_cut_the_chunks() -> None:
    embed, chat = FakeModel(MODEL, dim=8), FakeModel(TALKER, kind="chat")
    nodes: dict[str, Any] = {
        "cpu": {"seconds_per_item": PER_TEXT, "models": [embed]},
        "gpu": {"seconds_per_chat_token": 0.01, "models": [chat]},
        "both": {"seconds_per_item": PER_TEXT, "models": [embed, chat]},
    }
    async with cluster(**nodes) as made:
        await made.embed_batch(words(1000))
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed_batch, words(20_000))
            for _ in range(100):
                group.start_soon(made.chat)
                await anyio.sleep(0.1)
            before = {name: transport.requests for name, transport in made.transports.items()}
            await anyio.sleep(5.0)
            sent = {name: made[name].requests - count for name, count in before.items()}
            group.cancel_scope.cancel()
    assert 8 <= sent["cpu"] <= 12
    assert sent["both"] >= 60


async def test_a_batch_of_high_priority_goes_before_waiting_live_requests() -> None:
    async with cluster(a={"seconds_per_item": PER_TEXT}) as made:
        await measured(made)
        seconds: dict[int, list[float]] = {1: [], HIGHEST: []}
        for priority, found in seconds.items():
            async with anyio.create_task_group() as group:
                for number in range(1000):
                    group.start_soon(made.embed, f"live {number}")
                await anyio.sleep(1.0)
                batch = partial(made.embed_batch, words(20), priority=priority)
                await timed(batch, found)
        assert seconds[HIGHEST][0] < 1.0
        assert seconds[1][0] > 8.0
        await made.rest()


async def test_of_two_batches_the_one_of_higher_priority_is_done_sooner() -> None:
    async with cluster(a={"seconds_per_item": PER_TEXT}) as made:
        await measured(made)
        later: dict[int, list[float]] = {1: [], 8: []}
        for priority, found in later.items():
            async with anyio.create_task_group() as group:
                group.start_soon(partial(made.embed_batch, words(2000), priority=1))
                await anyio.sleep(1.0)
                batch = partial(made.embed_batch, words(2000), priority=priority)
                group.start_soon(timed, batch, found)
        assert later[8][0] <= 0.85 * later[1][0]
        await made.rest()


async def test_the_limit_of_live_requests_learns_nothing_from_waits_for_chunks() -> None:
    async with cluster(a={"seconds_per_item": PER_TEXT}) as made:
        await measured(made)
        work = next(work for work in made.node("a")._workloads if work.kind == "embed")
        before = work.concurrency
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed_batch, words(5000))
            await anyio.sleep(2.0)
            for number in range(100):
                group.start_soon(made.embed, f"live {number}")
                await anyio.sleep(0.1)
            assert work.concurrency == before
            group.cancel_scope.cancel()
