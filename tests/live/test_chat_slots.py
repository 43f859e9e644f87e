"""How many chats a node gets at once, over fakes with some slots: in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median
from typing import Any

import anyio
import pytest
from live_cluster import MODEL, TALKER, Cluster, cluster, gather, virtual_time

from aiosollol.core.node_transitions import Probed
from aiosollol.core.routing.strategies import RouteRequest

pytestmark = pytest.mark.anyio

TOKENS = 100
TEXT = " ".join(["word"] * TOKENS)
PACE = {"seconds_per_chat_token": 0.1}  # the first part after 0.1 s, the last after 10 s


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def first_parts(made: Cluster, streams: int) -> list[float]:
    """Seconds until the first part of each of some streams at once, read to their ends."""
    seconds = []

    async def read() -> None:
        began = anyio.current_time()
        stream = await made.stream(TEXT)
        seconds.append(anyio.current_time() - began)
        async for _ in stream:
            pass

    await gather(*[read] * streams)
    return seconds


@pytest.mark.parametrize(
    ("nodes", "slots"), [(1, 1), (1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (1, 16), (1, 64)]
)
async def test_as_many_streams_as_slots_begin_at_once(nodes: int, slots: int) -> None:
    async with cluster(**{f"n{at}": {**PACE, "slots": slots} for at in range(nodes)}) as made:
        await made.admin.warm(TALKER, None)
        for at in range(4):
            seconds = await first_parts(made, nodes * slots)
            assert max(seconds) <= (0.75 if at == 0 else 0.15)
        await made.rest()


async def in_five_minutes(callers: int, call: Callable[[], Awaitable[Any]]) -> int:
    """How many calls end in time if some callers call again and again."""
    until = anyio.current_time() + 300.0
    ended = 0

    async def one() -> None:
        nonlocal ended
        while anyio.current_time() < until:
            await call()
            ended += anyio.current_time() <= until

    await gather(*[one] * callers)
    return ended


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("slots", [1, 4, 16])
async def test_twice_as_many_callers_as_slots_keep_them_all_busy(
    slots: int, is_stream: bool
) -> None:
    async with cluster(a={**PACE, "slots": slots}, wait_timeout=300.0) as made:
        await made.admin.warm(TALKER, None)
        chats = await in_five_minutes(
            2 * slots, lambda: first_parts(made, 1) if is_stream else made.chat(TEXT)
        )
        # Of whole answers only the end shows how many the node answers at once.
        assert chats >= (0.95 if is_stream or slots < 16 else 0.85) * slots * 30
        assert made["a"].max_in_flight <= 2 * slots, "the others waited here"
        limit = made.node("a").workload(RouteRequest(TALKER, kind="chat")).allowed
        assert slots < limit <= max(2, slots + 2)
        await made.rest()


async def test_embeddings_do_not_raise_the_limit_of_chats() -> None:
    nodes = {name: {"seconds_per_item": 3e-4, "seconds_per_chat_token": 1.0} for name in "ab"}
    async with cluster(**nodes, wait_timeout=300.0) as made:
        await made.admin.warm(MODEL, None)
        await made.admin.warm(TALKER, None)

        async def embeds() -> None:
            for _ in range(20):
                await made.embed()

        await gather(*[embeds] * 100)
        ten = " ".join(["word"] * 10)
        for _ in range(20):
            made.group.start_soon(lambda: made.chat(ten, priority=1))
        await anyio.sleep(1.0)
        assert [made[name].in_flight for name in "ab"] == [2, 2]
        began = anyio.current_time()
        await made.chat(ten, priority=10)
        # Behind what the node has already, not behind those that wait.
        assert anyio.current_time() - began <= 30.0
        await anyio.sleep(200.0)
        await made.rest()


async def test_a_family_with_one_slot_gets_one_chat_at_a_time() -> None:
    async with cluster(a={**PACE, "slots": 4}) as made:
        models = made.node("a").state.models or {}
        family = {name: model._replace(family="qwen3vl") for name, model in models.items()}
        made.state.apply("a", Probed(None, family, {}))
        await gather(*[lambda: made.chat("one two")] * 8)
        assert made["a"].max_in_flight == 1
        await made.rest()


async def test_a_queued_request_counts_for_what_it_is() -> None:
    nodes = {"a": {"seconds_per_chat_token": 1.0, "seconds_per_item": 0.01, "max_concurrency": 1}}
    async with cluster(**nodes) as made:
        await made.warm_up()
        for _ in range(3):
            made.group.start_soon(made.chat)
        await anyio.sleep(0.1)
        now = made.state.clock()
        assert made.node("a").wait(RouteRequest(MODEL, 4.0), now) == pytest.approx(11.9, rel=0.1)
        await made.rest()


async def test_the_seconds_of_a_chat_follow_from_its_parts() -> None:
    node = {"seconds_per_token": 0.01, "seconds_per_chat_token": 0.1, "slots": 4}
    async with cluster(a=node) as made:
        for _ in range(5):
            reply = await made.chat(TEXT)
        prefill = 0.01 * reply.prompt_eval_count
        seconds = made.node("a").chat_seconds(RouteRequest(TALKER, 20.0, "chat"))
        assert seconds is not None
        assert seconds.prefill == pytest.approx(prefill, rel=0.1)
        assert seconds.decode == pytest.approx(10.0, rel=0.1)
        short = made.node("a").chat_seconds(RouteRequest(TALKER, 20.0, "chat", max_output=10))
        assert short is not None
        assert short.decode == pytest.approx(1.0, rel=0.1)


async def test_the_first_token_is_predicted() -> None:
    """Streams of one length at 70 % of what two nodes of four slots can do."""
    node = {"seconds_per_chat_token": 0.1, "seconds_per_token": 0.01, "slots": 4}
    rng, errors = random.Random(3), []
    async with cluster(a=node, b=node) as made:
        await made.admin.warm(TALKER, None)

        async def read() -> None:
            explained = await made.admin.route(TALKER, "chat", 20.0)
            terms = next(n.terms for n in explained.nodes if n.name == explained.chosen)
            predicted = terms["queue"] + terms["load"] + terms["prefill"]
            began = anyio.current_time()
            stream = await made.stream(TEXT)
            errors.append(abs(predicted / (anyio.current_time() - began) - 1.0))
            async for _ in stream:
                pass

        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(read)
                await anyio.sleep(rng.expovariate(0.5))
        assert median(errors[20:]) < 0.2
        await made.rest()


async def test_a_slot_goes_to_the_foremost_of_all_lines() -> None:
    node = {"seconds_per_chat_token": 1.0, "seconds_per_item": 1.0, "max_concurrency": 1}
    order: list[str] = []

    async def note(name: str, call: Callable[[], Awaitable[Any]]) -> None:
        await call()
        order.append(name)

    async with cluster(a=node) as made:
        await made.warm_up()
        calls = {
            "first": made.chat,
            "embedding": made.embed,
            "urgent chat": partial(made.chat, priority=9),
            "urgent embedding": partial(made.embed, priority=10),
        }
        for name, call in calls.items():
            made.group.start_soon(note, name, call)
            await anyio.sleep(0.1)
        await anyio.sleep(30.0)
        assert order == ["first", "urgent embedding", "urgent chat", "embedding"]
        await made.rest()
