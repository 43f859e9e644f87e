"""The accounts of one request on one node: the breaker, the counters, the blame."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import CHAT, EMBED, Cluster, cluster, gather, vector, virtual_time

from aiosollol.core.routing.circuit_breaker import FIRST_EJECTION
from aiosollol.errors import BadRequest, ModelNotFound, NodeTimeout, NoNodeAvailable, PoolSaturated
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def fail(made: Cluster, name: str, times: int = 5) -> None:
    """Let live requests to `name` fail until its breaker opens."""
    made[name].fault = Fault.ERROR_500
    made.use_only(name)
    for _ in range(times):
        with pytest.raises(NoNodeAvailable):
            await made.embed(timeout=1e-3)
    made.use_only()


async def test_five_failures_in_a_row_take_a_node_out_and_two_answers_bring_it_back() -> None:
    async with cluster(a={}, b={}, max_retries=0, strategy="round_robin") as made:
        await made.warm_up()
        await fail(made, "a")
        assert made.node("a").breaker.phase(anyio.current_time()) == "open"
        items = made["a"].requests
        for _ in range(10):
            assert await made.embed() == vector()
        assert made["a"].requests == items
        made["a"].fault = None
        await anyio.sleep(FIRST_EJECTION + 0.01)
        for _ in range(30):
            assert await made.embed() == vector()
        assert made.node("a").breaker.opens_at is None
        assert made["a"].requests >= items + 2
        await made.rest()


async def test_only_one_request_probes_a_node_that_is_half_open() -> None:
    async with cluster(a={}, b={"slots": 8}, max_retries=3) as made:
        await made.warm_up()
        await fail(made, "a")
        made["a"].fault = Fault.HANG
        await anyio.sleep(FIRST_EJECTION + 0.01)
        requests = made["a"].requests
        results = await gather(*[partial(made.embed, timeout=30.0)] * 20)
        assert results == [vector()] * 20
        assert made["a"].requests <= requests + 2
        await made.rest()


async def test_the_last_node_is_asked_anyway_and_closes_at_once_when_it_is_well() -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        await fail(made, "a")
        opens_at = made.node("a").breaker.opens_at
        assert opens_at is not None
        made["a"].fault = None
        assert await made.embed() == vector()
        assert await made.embed() == vector()
        assert anyio.current_time() < opens_at, "nobody waited for its ejection to end"
        assert made.node("a").breaker.opens_at is None
        await made.rest()


async def test_many_callers_of_a_last_node_probe_it_one_by_one_and_then_all_go() -> None:
    async with cluster(a={"seconds_per_item": 0.1, "slots": 4}) as made:
        await made.warm_up()
        await fail(made, "a")
        made["a"].fault = None
        assert await gather(*[made.embed] * 20) == [vector()] * 20
        await made.rest()


async def test_when_the_last_node_hangs_callers_wait_no_longer_than_they_may() -> None:
    async with cluster(a={}, wait_timeout=3.0, max_retries=0) as made:
        await made.warm_up()
        await fail(made, "a")
        made["a"].fault = Fault.HANG
        results = await gather(*[partial(made.embed, timeout=10.0)] * 5)
        assert {type(each) for each in results} <= {PoolSaturated, NodeTimeout}
        assert anyio.current_time() <= 14.0
        made["a"].fault = None
        await made.rest()


async def test_a_probe_that_is_given_up_leaves_room_for_the_next() -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        await fail(made, "a")
        made["a"].fault = Fault.HANG
        with anyio.move_on_after(0.1):
            await made.embed()
        assert not made.node("a").breaker.is_probing
        made["a"].fault = None
        assert await made.embed() == vector()
        await made.rest()


async def test_a_stream_that_has_begun_has_shown_that_its_node_is_well() -> None:
    async with cluster(a={"seconds_per_chat_token": 10.0, "slots": 2}) as made:
        await made.warm_up()
        await fail(made, "a")
        made["a"].fault = None
        async with await made.stream("one two three four five six"):
            assert not made.node("a").breaker.is_probing
            assert await made.embed() == vector()
        assert made.node("a").breaker.opens_at is None
        await made.rest()


async def test_what_the_caller_got_wrong_is_not_held_against_the_node() -> None:
    async with cluster(a={"poison": {"arsenic"}}, b={"poison": {"arsenic"}}) as made:
        for _ in range(10):
            with pytest.raises(BadRequest):
                await made.embed("arsenic")
        assert all(node.breaker.opens_at is None for node in made.state)
        assert all(node.counters.success_rate == 1.0 for node in made.state)
        assert sum(node.counters.rejected for node in made.state) == 20
        await made.rest()


async def test_callers_in_a_hurry_do_not_take_a_node_from_the_others() -> None:
    async with cluster(a={"seconds_per_item": 1.0, "slots": 4}) as made:
        await made.warm_up(times=3)
        for _ in range(10):
            with pytest.raises(NodeTimeout, match=r"no answer within 0\.5 s"):
                await made.embed(timeout=0.5)
        assert made.node("a").breaker.opens_at is None
        assert made.node("a").counters.failed == 10, "they did fail"
        assert made.node("a").state.failures == 0
        await anyio.sleep(2.0)
        assert await made.embed() == vector()
        await made.rest()


async def test_a_node_that_hangs_is_to_blame() -> None:
    async with cluster(a={"seconds_per_item": 0.01}, max_retries=0) as made:
        await made.warm_up(times=3)
        made["a"].fault = Fault.HANG
        for _ in range(5):
            with pytest.raises(NodeTimeout):
                await made.embed(timeout=2.0)
        assert made.node("a").breaker.opens_at is not None
        made["a"].fault = None
        await made.rest()


async def test_a_model_that_is_gone_from_a_node_costs_one_attempt() -> None:
    async with cluster(a={}, b={}, strategy="round_robin") as made:
        await made.warm_up()
        made["a"].remove_model(EMBED.name)
        for _ in range(6):
            assert await made.embed() == vector()
        assert made.node("a").counters.rejected == 1
        assert made.node("a").breaker.opens_at is None
        assert not made.node("a").has_model(EMBED.name)
        await made.chat()
        await made.rest()


async def test_a_model_that_is_gone_from_all_is_not_found() -> None:
    async with cluster(a={}, b={}) as made:
        await made.warm_up()
        for name in "ab":
            made[name].remove_model(EMBED.name)
        with pytest.raises(ModelNotFound) as caught:
            await made.embed()
        assert caught.value.nodes == {"a": (CHAT.name,), "b": (CHAT.name,)}
        assert len(caught.value.attempts) == 2
        await made.rest()
