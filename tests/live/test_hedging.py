"""Second requests for late answers: who wins, who is cancelled, and what it may cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from live_cluster import Cluster, Watcher, cluster, gather, vector, virtual_time

from aiosollol.core.events import Hedged
from aiosollol.errors import NodeError, NodeTimeout, PoolClosed, RunnerFailed
from aiosollol.live.hedging import HedgeTimer, Race
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def answers(what: str, after: float, ended: list[str]) -> Callable[[], Awaitable[str]]:
    """A request that takes `after` seconds; "!" at the end of its name lets it fail."""

    async def send() -> str:
        try:
            await anyio.sleep(after)
        except anyio.get_cancelled_exc_class():
            ended.append(f"{what} cancelled")
            raise
        ended.append(what)
        if what.endswith("!"):
            raise RunnerFailed("n", 500, what)
        return what

    return send


class Raced(Race[str]):
    """A race whose second request is `second`; None if there is no node to ask."""

    def __init__(
        self, timer: HedgeTimer, due: float, second: Callable[[], Awaitable[str]] | None
    ) -> None:
        super().__init__(timer, due)
        self._second = second

    async def another(self) -> str | None:
        return None if self._second is None else await self._second()


async def race(
    first: tuple[str, float], second: tuple[str, float] | None, due: float = 1.0
) -> tuple[str, float, list[str]]:
    ended: list[str] = []

    async with anyio.create_task_group() as group:

        async def run(work: Any) -> None:
            await work

        timer = HedgeTimer(anyio.current_time, lambda work, name: group.start_soon(run, work))
        made = Raced(timer, due, None if second is None else answers(*second, ended))
        try:
            answer = await made.run(answers(*first, ended)())
        except NodeError as error:
            answer = error.detail
        took = anyio.current_time()
    return answer, took, ended


@pytest.mark.parametrize(
    ("first", "second", "answer", "took", "ended"),
    [
        # in time: nobody else is asked
        (("one", 0.5), ("two", 0.1), "one", 0.5, ["one"]),
        # late: the second wins, and the first is cancelled
        (("one", 9.0), ("two", 0.5), "two", 1.5, ["two", "one cancelled"]),
        # late, and still faster than the second
        (("one", 1.2), ("two", 5.0), "one", 1.2, ["one", "two cancelled"]),
        # fails before the second is due
        (("one!", 0.5), ("two", 0.1), "one! (status 500)", 0.5, ["one!"]),
        # fails while the second runs: that may still do it
        (("one!", 1.2), ("two", 2.0), "two", 3.0, ["one!", "two"]),
        # both fail: what the first said is told
        (("one!", 1.2), ("two!", 2.0), "one! (status 500)", 3.0, ["one!", "two!"]),
        (("one!", 9.0), ("two!", 2.0), "one! (status 500)", 9.0, ["two!", "one!"]),
        # there is nobody to ask
        (("one", 3.0), None, "one", 3.0, ["one"]),
        (("one!", 3.0), None, "one! (status 500)", 3.0, ["one!"]),
    ],
)
async def test_who_wins(
    first: tuple[str, float],
    second: tuple[str, float] | None,
    answer: str,
    took: float,
    ended: list[str],
) -> None:
    got, seconds, order = await race(first, second)
    assert got == answer
    assert seconds == pytest.approx(took)
    assert sorted(order) == sorted(ended)


@pytest.mark.parametrize("at", [0.5, 1.5, 2.5])
async def test_who_leaves_cancels_all(at: float) -> None:
    ended: list[str] = []
    async with anyio.create_task_group() as group:

        async def run(work: Any) -> None:
            await work

        timer = HedgeTimer(anyio.current_time, lambda work, name: group.start_soon(run, work))
        made = Raced(timer, 1.0, answers("two", 5.0, ended))
        with anyio.move_on_after(at):
            await made.run(answers("one!", 2.0, ended)())
        assert anyio.current_time() == pytest.approx(at)
    expected = {
        0.5: ["one! cancelled"],
        1.5: ["one! cancelled", "two cancelled"],
        2.5: ["one!", "two cancelled"],
    }
    assert sorted(ended) == expected[at]


async def test_a_pool_that_closes_in_between_is_no_crash() -> None:
    async def closed() -> str:
        raise PoolClosed("the pool is closed")

    async with anyio.create_task_group() as group:

        async def run(work: Any) -> None:
            await work

        timer = HedgeTimer(anyio.current_time, lambda work, name: group.start_soon(run, work))
        made = Raced(timer, 1.0, closed)
        assert await made.run(answers("one", 3.0, [])()) == "one"


async def test_one_timer_serves_many_and_ends_when_there_is_nothing_to_do() -> None:
    tasks: list[str] = []
    async with anyio.create_task_group() as group:

        async def run(work: Any) -> None:
            await work

        def spawn(work: Any, name: str) -> None:
            tasks.append(name)
            group.start_soon(run, work)

        timer = HedgeTimer(anyio.current_time, spawn)
        ended: list[str] = []

        async def one(number: int) -> None:
            made = Raced(timer, 10.0 - number / 10, answers("two", 0.1, ended))
            await made.run(answers("one", 30.0, ended)())

        async with anyio.create_task_group() as races:
            for number in range(20):  # each is due before the one that is watched
                races.start_soon(one, number)
                await anyio.sleep(0.01)
        assert anyio.current_time() == pytest.approx(10.1)
        assert ended.count("two") == 20
        assert tasks.count("hedge late requests") == 1
        await anyio.sleep(3.0)
        assert not timer._is_watching
    assert anyio.current_time() == pytest.approx(13.1), "the timer was not waited for"


# With nodes.


async def known(made: Cluster, times: int = 60) -> None:
    """Enough answers that the pool knows what is late."""
    await made.warm_up(times=5)
    for _ in range(times):
        await made.embed()


def nodes(count: int = 2, **given: Any) -> dict[str, dict[str, Any]]:
    return {name: {"seconds_per_item": 0.1, **given} for name in "abcdef"[:count]}


async def test_a_late_embedding_is_asked_of_a_second_node_and_the_loser_is_cancelled() -> None:
    async with cluster(**nodes()) as made:
        await known(made)
        before, watcher = made.stats(), Watcher(made)
        for name in "ab":
            made[name].fail_next(Fault.HANG)  # whoever is asked first; then the other is sound
        slow = made["a"].cancelled + made["b"].cancelled
        began = anyio.current_time()

        async def heal() -> None:
            await anyio.sleep(0.01)
            for name in "ab":
                made[name]._next_faults.clear()

        made.group.start_soon(heal)
        assert await made.embed() == vector()
        took = anyio.current_time() - began
        assert took < 0.5, "and not the 60 s that a node that hangs would take"
        assert len(watcher.of(Hedged)) == 1
        assert made["a"].cancelled + made["b"].cancelled == slow + 1, "on the wire too"
        after = made.stats()
        assert after["cancelled_requests"] == before["cancelled_requests"] + 1
        assert after["successful_requests"] == before["successful_requests"] + 1
        await made.rest()


async def test_at_most_one_in_twenty_is_hedged() -> None:
    async with cluster(**nodes()) as made:
        await known(made)
        watcher = Watcher(made)
        for fake in made.transports.values():
            fake.seconds_per_item = 0.25  # everything is late now
        for _ in range(100):
            await made.embed()
        assert 1 <= len(watcher.of(Hedged)) <= 5 + 100 * 0.05 + 1
        await made.rest()


async def test_hedging_can_be_turned_off() -> None:
    async with cluster(**nodes(), hedge_rate=0.0) as made:
        await known(made)
        watcher = Watcher(made)
        for fake in made.transports.values():
            fake.seconds_per_item = 0.25
        for _ in range(10):
            await made.embed()
        assert not watcher.of(Hedged)


async def test_no_second_node_is_made_to_load_for_it() -> None:
    async with cluster(
        a={"seconds_per_item": 0.1, "load_seconds": 5.0}, b={"load_seconds": 5.0}
    ) as made:
        made.node("b").is_draining = True
        made.state.wake()
        for _ in range(60):
            await made.embed()
        made.node("b").is_draining = False
        made.state.wake()
        made["a"].seconds_per_item = 0.5
        for _ in range(5):
            await made.embed()
        assert made["b"].requests == 0


async def test_neither_a_late_nor_a_second_request_outlives_its_caller() -> None:
    async with cluster(**nodes(), max_retries=0) as made:
        await known(made)
        for fake in made.transports.values():
            fake.fault = Fault.HANG
        began = anyio.current_time()
        with pytest.raises(NodeTimeout, match=" and "):
            await made.embed(timeout=2.0)
        assert anyio.current_time() - began == pytest.approx(2.0)
        began = anyio.current_time()
        with anyio.move_on_after(1.0):
            await made.embed()
        assert anyio.current_time() - began == pytest.approx(1.0)
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_a_node_that_hangs_costs_a_known_caller_little() -> None:
    async with cluster(**nodes(4)) as made:
        await known(made)
        made["a"].fault = Fault.HANG
        began = anyio.current_time()
        results = await gather(*[made.embed] * 40)
        assert results == [vector()] * 40
        assert anyio.current_time() - began < 5.0
        made["a"].fault = None
        await made.rest()


async def test_a_pool_that_is_closed_during_a_race() -> None:
    errors: list[Exception] = []
    async with anyio.create_task_group() as calls, cluster(**nodes()) as made:
        await known(made)
        for fake in made.transports.values():
            fake.fault = Fault.HANG

        async def call() -> None:
            try:
                await made.embed()
            except Exception as error:
                errors.append(error)

        calls.start_soon(call)
        await anyio.sleep(0.3)
        assert sum(fake.in_flight for fake in made.transports.values()) == 2
        began = anyio.current_time()
        await made.close()
    assert [type(each) for each in errors] == [PoolClosed]
    assert anyio.current_time() == began
