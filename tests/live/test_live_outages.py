"""Live requests while nodes fail, in virtual time: who is at fault, and who waits for whom."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import cluster, gather, strike, vector, virtual_time

from aiosollol.errors import BadRequest, NodeError, NodeTimeout, NoNodeAvailable
from aiosollol.testing import Fault
from aiosollol.testing.faults import RETRY_AFTER

pytestmark = pytest.mark.anyio

PASSING = [
    Fault.ERROR_500,
    Fault.BUSY_503,
    Fault.BAD_400_RUNNER,
    Fault.RESET,
    Fault.HTML_502,
    Fault.HTML,
    Fault.HTML_404,
    Fault.CUT_JSON,
]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


@pytest.mark.parametrize("names", ["a", "abc"])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("fault", PASSING)
async def test_an_outage_of_all_nodes_is_waited_for(
    fault: Fault, seconds: float, names: str
) -> None:
    async with cluster(**{name: {} for name in names}) as made:
        await made.warm_up()
        made.group.start_soon(strike, made, fault, names, seconds)
        await anyio.sleep(0.0001)
        calls = [partial(made.embed, timeout=100.0), partial(made.chat, timeout=100.0)] * 10
        began = anyio.current_time()
        results = await gather(*calls)
        assert not [each for each in results if isinstance(each, Exception)]
        assert anyio.current_time() - began <= seconds + 2.0
        await made.rest()


async def test_a_restart_is_survived_by_those_who_were_there() -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        made.group.start_soon(strike, made, Fault.REFUSE, "a", 2.0)
        await anyio.sleep(0.0001)
        assert await made.embed() == vector()
        await made.rest()


@pytest.mark.parametrize("fault", [Fault.BUSY_429_SECONDS, Fault.BUSY_429_DATE])
async def test_a_node_that_says_when_to_come_back_is_asked_then(fault: Fault) -> None:
    async with cluster(a={}, b={}) as made:
        await made.warm_up()
        made.group.start_soon(strike, made, fault, "ab", 0.1)
        await anyio.sleep(0.0001)
        began = anyio.current_time()
        before = [made[name].requests for name in "ab"]
        assert await made.embed(timeout=30.0) == vector()
        assert anyio.current_time() - began >= RETRY_AFTER
        assert [made[name].requests - old for name, old in zip("ab", before, strict=True)] in (
            [2, 1],
            [1, 2],
        )
        await made.rest()


async def test_those_who_wait_do_not_storm_the_nodes() -> None:
    async with cluster(a={"slots": 100}, b={"slots": 100}) as made:
        await made.warm_up()
        for name in "ab":
            made[name].fault = Fault.HTML_502
        before = made["a"].requests + made["b"].requests
        results = await gather(*[partial(made.embed, timeout=10.0)] * 200)
        assert all(isinstance(each, Exception) for each in results)
        sent = made["a"].requests + made["b"].requests - before
        assert sent <= 200 * 1.2 + 10 + 2 * 10.0 / 0.4 + 30


@pytest.mark.parametrize(
    "fault", [Fault.ERROR_500, Fault.HTML_502, Fault.RESET, Fault.TOO_FEW, Fault.HTML]
)
@pytest.mark.parametrize("liars", [1, 2])
async def test_nodes_that_fail_everything_get_hardly_any_traffic(fault: Fault, liars: int) -> None:
    names = "abcd"
    async with cluster(**{name: {"overhead": 0.01} for name in names}) as made:
        await made.warm_up()
        for name in names[:liars]:
            made[name].fault = fault
            made[name].overhead = 0.001

        async def caller() -> None:
            for _ in range(100):
                assert await made.embed() == vector()

        before = sum(made[name].requests for name in names)
        await gather(*[caller] * 4)
        bad = sum(made[name].requests for name in names[:liars])
        total = sum(made[name].requests for name in names) - before
        assert bad - 10 * liars <= 0.03 * total + 10 * liars


@pytest.mark.parametrize("liars", [1, 2])
@pytest.mark.parametrize("warm", [False, True])
async def test_nodes_that_refuse_everything_are_found_out(warm: bool, liars: int) -> None:
    names = "abcd"
    async with cluster(**{name: {"overhead": 0.01} for name in names}) as made:
        if warm:
            await made.warm_up()
        for name in names[:liars]:
            made[name].poison = {""}
            made[name].overhead = 0.001

        async def caller() -> list[Any]:
            results = []
            for _ in range(100):
                results += await gather(made.embed)
            return results

        before = sum(made[name].requests for name in names[:liars])
        results = [each for found in await gather(*[caller] * 4) for each in found]
        wrong = sum(each != vector() for each in results)
        assert wrong <= (1 if warm and liars == 2 else 0), "two sound nodes that agree are believed"
        assert sum(made[name].requests for name in names[:liars]) - before <= 25 * liars
        for name in names[:liars]:
            assert made.node(name).breaker.opens_at is not None


async def test_what_is_wrong_with_a_request_is_held_against_no_node() -> None:
    poison = {"poison": {"arsenic"}}
    async with cluster(a=poison, b=poison, c=poison) as made:
        await made.warm_up()
        for _ in range(20):
            with pytest.raises(BadRequest):
                await made.embed("arsenic")
        for node in made.state:
            assert node.breaker.opens_at is None
            assert not node.standing.is_stained


async def test_an_answer_elsewhere_convicts_the_node_that_refused() -> None:
    async with cluster(a={"poison": {"odd"}}, b={}, strategy="priority") as made:
        await made.warm_up()
        assert await made.embed("odd") == vector("odd")
        assert made.node("a").standing.is_stained
        assert not made.node("b").standing.is_stained


async def test_a_timeout_is_called_a_timeout() -> None:
    async with cluster(a={"seconds_per_item": 1.0}) as made:
        await made.warm_up()
        with pytest.raises(NodeTimeout, match=r"^a: no answer within 0\.2 s") as caught:
            await made.embed(timeout=0.2)
        assert isinstance(caught.value.__cause__, NodeError)


async def test_an_error_lists_each_node_once() -> None:
    async with cluster(a={}, b={}) as made:
        await made.warm_up()
        made["a"].fault, made["b"].fault = Fault.TOO_FEW, Fault.HTML
        with pytest.raises(NoNodeAvailable) as caught:
            await made.embed()
        lines = str(caught.value).splitlines()
        assert len(lines) == 3
        assert {line.split(":")[0].strip() for line in lines[1:]} == {"a", "b"}
