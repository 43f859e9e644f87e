"""Which node a live request gets, and how it waits for one: over fakes, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import anyio
import pytest
from admission_parts import ONE
from live_cluster import cluster, gather, vector, virtual_time

from aiosollol.core.routing.strategies import NodeLoad, RouteRequest
from aiosollol.errors import (
    InvalidInput,
)
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio

SLOW = {"seconds_per_item": 1.0}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Who is chosen.


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("round_robin", {"a": 4, "b": 4, "c": 4}),
        ("priority", {"b": 12}),
        ("score", {"b": 12}),
    ],
)
async def test_one_by_one_goes_where_the_strategy_says(
    strategy: str, expected: dict[str, int]
) -> None:
    nodes = {name: {"priority": 5} for name in "ac"}
    async with cluster(a=nodes["a"], b={"priority": 1}, c=nodes["c"], strategy=strategy) as made:
        before = {name: made[name].items for name in "abc"}
        for _ in range(12):
            await made.embed()
        got = Counter({name: made[name].items - before[name] for name in "abc"})
        assert +got == Counter(expected)


@pytest.mark.parametrize("strategy", ["performance", "least_loaded", "random", "round_robin"])
async def test_many_at_once_are_spread_by_every_strategy(strategy: str) -> None:
    async with cluster(a=SLOW, b=SLOW, c=SLOW, d=SLOW, strategy=strategy) as made:
        await made.warm_up()
        began = anyio.current_time()
        results = await gather(*[made.embed] * 16)
        assert results == [vector()] * 16
        assert anyio.current_time() - began <= 8.0
        assert all(made[name].items >= 2 for name in "abcd")
        await made.rest()


async def test_priority_uses_the_next_tier_when_the_first_is_full() -> None:
    first, second = {**ONE, "priority": 0}, {**ONE, "priority": 1}
    async with cluster(a=first, b=second, strategy="priority") as made:
        await made.warm_up()
        items = made["b"].items
        await made.embed()
        assert made["b"].items == items
        await gather(made.embed, made.embed)
        assert made["b"].items == items + 1


async def test_a_function_of_the_users_own_chooses() -> None:
    asked: list[tuple[set[str], RouteRequest]] = []

    def last(nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random) -> NodeLoad:
        asked.append(({node.name for node in nodes}, request))
        return nodes[-1]

    async with cluster(a={}, b={}, c={}, strategy=last) as made:
        await made.embed()
        await made.chat()
        assert made["c"].items == 1
        assert [names for names, _ in asked] == [{"a", "b", "c"}] * 2
        assert [request.kind for _, request in asked] == ["embed", "chat"]
        await made.rest()


async def test_a_function_that_answers_nonsense_is_told_so() -> None:
    def none(nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random) -> Any:
        return "a"

    async with cluster(a={}, b={}, strategy=none) as made:
        with pytest.raises(InvalidInput, match="must return one of its nodes"):
            await made.embed()
        await made.rest()


async def test_only_nodes_that_are_fit_are_asked() -> None:
    lacking = {"models": ["another"]}
    async with cluster(lacks=lacking, down={}, drained={}, fit={}, strategy="round_robin") as made:
        made["down"].fault = Fault.REFUSE
        await made.monitor.probe("down")
        await made.admin.drain("drained")
        for _ in range(4):
            assert await made.embed() == vector()
        assert made["fit"].items == 4
        assert made["drained"].requests == made["lacks"].requests == made["down"].requests == 0


@pytest.mark.parametrize("name", ["nomic-embed-text", "nomic-embed-text:latest"])
async def test_a_name_with_and_without_its_tag_is_one(name: str) -> None:
    async with cluster(a={}) as made:
        assert await made.embed(model=name) == vector()


async def test_a_node_that_is_full_gets_no_more_though_it_is_the_faster_one() -> None:
    fast = {"seconds_per_item": 0.1, "max_concurrency": 1}
    async with cluster(fast=fast, slow=SLOW, strategy="least_loaded") as made:
        await made.warm_up()
        await gather(*[made.embed] * 2)
        assert made["fast"].max_in_flight == 1
        await made.rest()


async def test_waiting_for_a_fast_node_beats_a_slow_one_that_is_free() -> None:
    fast = {"seconds_per_item": 0.1, "max_concurrency": 1}
    async with cluster(fast=fast, slow={"seconds_per_item": 10.0}) as made:
        await made.warm_up()
        slow, began = made["slow"].items, anyio.current_time()
        assert await gather(*[made.embed] * 5) == [vector()] * 5
        assert made["slow"].items == slow
        assert anyio.current_time() - began == pytest.approx(0.5)
