"""Waiting for a slot on a node: in order, by priority, never for ever."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest
from admission_parts import ONE
from live_cluster import MODEL, Cluster, cluster, gather, vector, virtual_time

from aiosollol.cluster.node import Node
from aiosollol.core.node import NodeSpec
from aiosollol.core.node_transitions import ProbeFailed
from aiosollol.core.routing.concurrency_limit import Concurrency
from aiosollol.core.routing.strategies import NodeLoad, RouteRequest
from aiosollol.errors import (
    NodeUnreachable,
    PoolSaturated,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Waiting.


async def test_those_who_wait_are_served_in_order() -> None:
    done: list[int] = []
    async with cluster(a=ONE) as made:
        await made.warm_up()

        async def call(number: int) -> None:
            await made.embed(str(number))
            done.append(number)

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(call, number)
                await anyio.sleep(0.01)
        assert done == list(range(6))
        assert anyio.current_time() - began == pytest.approx(6.0)
        assert made["a"].max_in_flight == 1
        await made.rest()


async def test_high_priority_goes_first_and_low_priority_still_gets_its_turn() -> None:
    done: list[tuple[int, int]] = []
    async with cluster(a=ONE, wait_timeout=1000.0) as made:
        await made.warm_up()

        async def call(number: int, priority: int) -> None:
            await made.embed(str(number), priority=priority, timeout=1000.0)
            done.append((number, priority))

        async with anyio.create_task_group() as group:
            group.start_soon(call, 0, 5)
            for number, priority in enumerate((1, 5, 10, 5, 10), 1):
                await anyio.sleep(0.01)
                group.start_soon(call, number, priority)
        assert done == [(0, 5), (3, 10), (5, 10), (2, 5), (4, 5), (1, 1)]
        done.clear()
        # One of priority 1 against a stream of those of 10: its age counts too.
        async with anyio.create_task_group() as group:
            group.start_soon(call, 0, 5)
            await anyio.sleep(0.01)
            group.start_soon(call, 1, 1)
            for number in range(2, 102):
                group.start_soon(call, number, 10)
                await anyio.sleep(0.9)
        assert 40 <= done.index((1, 1)) <= 60
        await made.rest()


async def test_who_leaves_the_line_leaves_no_gap() -> None:
    async with cluster(a=ONE) as made:
        await made.warm_up()
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed)
            await anyio.sleep(0.1)
            with anyio.CancelScope() as scope:
                group.start_soon(partial(_cancel_after, scope, 0.5))
                await made.embed()
            assert scope.cancelled_caught
            group.start_soon(made.embed)
        assert anyio.current_time() - began == pytest.approx(2.0)
        await made.rest()


async def _cancel_after(scope: anyio.CancelScope, seconds: float) -> None:
    await anyio.sleep(seconds)
    scope.cancel()


async def test_who_is_cancelled_at_the_moment_of_getting_a_place_gives_it_on() -> None:
    async with cluster(a=ONE) as made:
        await made.warm_up()
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed)
            await anyio.sleep(0.1)
            for _ in range(5):  # in line, and each gone in the very moment in which it is its turn
                group.start_soon(_embed_for, made, 0.9)
            await anyio.sleep(0.01)
            group.start_soon(made.embed)
        assert anyio.current_time() - began <= 2.01
        await made.rest()


async def _embed_for(made: Any, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await made.embed()


async def test_a_full_waiting_room_says_so_at_once() -> None:
    async with cluster(a=ONE, max_waiting=2) as made:
        await made.warm_up()
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(made.embed)
            await anyio.sleep(0.01)
            with pytest.raises(PoolSaturated, match="2 requests are waiting"):
                await made.embed()
            assert anyio.current_time() - began == pytest.approx(0.01)
        await made.rest()


@pytest.mark.parametrize(("wait_timeout", "timeout"), [(1.5, 60.0), (60.0, 1.5)])
async def test_no_request_waits_beyond_its_timeout(wait_timeout: float, timeout: float) -> None:
    async with cluster(a={"seconds_per_item": 5.0, "max_concurrency": 1}) as made:
        await made.warm_up()
        made.admission._wait_timeout = wait_timeout
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed)
            await anyio.sleep(0.01)
            began = anyio.current_time()
            with pytest.raises(PoolSaturated, match=r"within 1.5 s"):
                await made.embed(timeout=timeout)
            assert anyio.current_time() - began == pytest.approx(1.5, abs=0.06)
        await made.rest()


@pytest.mark.parametrize("nodes", [1, 2, 3])
async def test_a_long_line_is_served_in_order(nodes: int) -> None:
    """However often those in front look around."""
    done: list[int] = []
    names = "abc"[:nodes]
    async with cluster(**dict.fromkeys(names, ONE), wait_timeout=1000.0) as made:
        await made.warm_up()

        async def call(number: int) -> None:
            await made.embed(str(number), timeout=1000.0)
            done.append(number)

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(call, number)
                await anyio.sleep(0.001)
        assert anyio.current_time() - began <= 300 / nodes + 2.0
        assert max(abs(place - number) for place, number in enumerate(done)) <= 10 * (nodes - 1)
        await made.rest()


async def test_in_a_long_line_only_the_first_look_around() -> None:
    """Of 300 that wait, each could find a better node at any time: it would cost more than it is
    worth."""
    chosen = 0

    def first(
        nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random
    ) -> NodeLoad:
        nonlocal chosen
        chosen += 1
        return nodes[0]

    slow = {"seconds_per_item": 0.1, "max_concurrency": 1}
    async with cluster(a=slow, b=slow, wait_timeout=1000.0, strategy=first) as made:
        await made.warm_up()
        chosen = 0
        await gather(*[partial(made.embed, timeout=1000.0)] * 300)
        assert chosen <= 300 * 20
        await made.rest()


@pytest.mark.parametrize(
    ("wait_timeout", "timeout", "is_patient", "seconds", "answered"),
    [
        (100.0, 6.0, True, 10.0, True),  # 5 s in line do not count, 5 s on the node do
        (100.0, 6.0, False, 6.0, False),
        (3.0, 6.0, True, 3.0, False),
        (3.0, 6.0, False, 3.0, False),
        (100.0, 4.0, True, 9.0, False),  # in time for the node, which takes too long
    ],
)
async def test_whether_a_timeout_runs_while_a_request_waits(
    wait_timeout: float, timeout: float, is_patient: bool, seconds: float, answered: bool
) -> None:
    node = {"seconds_per_item": 5.0, "max_concurrency": 1}
    async with cluster(a=node, wait_timeout=wait_timeout, max_retries=0) as made:
        await made.warm_up()
        async with anyio.create_task_group() as group:
            began = anyio.current_time()
            group.start_soon(made.embed)
            await anyio.wait_all_tasks_blocked()
            (result,) = await gather(
                partial(made.embed, timeout=timeout, is_patient=is_patient),
            )
            assert anyio.current_time() - began == pytest.approx(seconds, abs=0.06)
            assert (result == vector()) is answered
        await made.rest()


def allow(made: Cluster, name: str, limit: int) -> None:
    """Set how many embeddings a node may have at once, as if it was learned."""
    node = made.node(name)
    work = node.workload(RouteRequest(MODEL))
    work.adapt(Concurrency(limit=limit, most=limit))


@pytest.mark.parametrize("how", ["down", "removed", "drained"])
async def test_a_line_goes_elsewhere_when_its_node_does(how: str) -> None:
    """`b` is slow, so all wait for `a`; when `a` is gone, they do not wait for it any more."""
    slow = {"seconds_per_item": 3.0, "max_concurrency": 8, "slots": 8}
    async with cluster(a={"seconds_per_item": 1.0, "max_concurrency": 1}, b=slow) as made:
        await made.warm_up()
        allow(made, "b", 8)
        began = anyio.current_time()

        async def end() -> None:
            await anyio.sleep(0.5)
            assert made.node("a").queued >= 2
            if how == "down":
                made.state.apply("a", ProbeFailed(NodeUnreachable("a", "refused")))
            elif how == "removed":
                await made.remove("a")
            else:
                await made.admin.drain("a")

        first, *rest, _ = await gather(*[made.embed] * 4, end)
        assert [first, *rest] == [vector()] * 4
        assert anyio.current_time() - began <= 3.6
        await made.rest()


async def test_max_concurrency_is_for_batches_and_live_calls_together() -> None:
    async with cluster(
        a={"seconds_per_item": 0.01, "max_concurrency": 3},
        b={"seconds_per_item": 0.01, "max_concurrency": 1},
    ) as made:
        await made.warm_up()
        texts = [f"text {number}" for number in range(300)]
        results = await gather(
            partial(made.embed_batch, texts),
            partial(made.embed_batch, texts[::-1]),
            *[made.embed] * 40,
            *[made.chat] * 10,
        )
        assert not [each for each in results if isinstance(each, Exception)]
        assert made["a"].max_in_flight <= 3
        assert made["b"].max_in_flight == 1
        await made.rest()


async def test_what_a_program_is_allowed_holds_for_batches_and_live_calls_together() -> None:
    async with cluster(a={"seconds_per_item": 0.01}, b={"seconds_per_item": 0.01}) as made:
        await made.warm_up()
        made["a"].max_in_flight = made["b"].max_in_flight = 0
        made.node("a").allow(1)
        made.node("b").allow(2)
        texts = [f"text {number}" for number in range(300)]
        results = await gather(
            partial(made.embed_batch, texts),
            partial(made.embed_batch, texts[::-1]),
            *[made.embed] * 40,
            *[made.chat] * 10,
        )
        assert not [each for each in results if isinstance(each, Exception)]
        assert made["a"].max_in_flight == 1
        assert made["b"].max_in_flight == 2
        await made.rest()


async def test_who_is_allowed_nothing_waits_and_goes_on_when_he_is() -> None:
    async with cluster(a={"seconds_per_item": 0.01}) as made:
        await made.warm_up()
        node, done = made.node("a"), []

        async def ask(call: Any) -> None:
            await call()
            done.append(anyio.current_time())

        async with anyio.create_task_group() as group:
            node.allow(0)
            began = anyio.current_time()
            group.start_soon(ask, made.embed)
            group.start_soon(ask, partial(made.embed_batch, ["one", "two"]))
            await anyio.sleep(5.0)
            assert not done
            assert (node.in_flight, node.wanted) == (0, 2)
            node.allow(1)
            await anyio.sleep(1.0)
            assert len(done) == 2
        assert done[0] >= began + 5.0
        await made.rest()


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_chunk_that_gives_up_leaves_its_place_to_the_next(anyio_backend: str) -> None:
    node = Node(NodeSpec("http://a.test"))
    node.allow(0)
    came = []

    async def visit(name: str) -> None:
        await node.enter()
        came.append(name)
        node.leave_chunk()

    async with anyio.create_task_group() as group:
        group.start_soon(visit, "last")
        async with anyio.create_task_group() as impatient:
            for _ in range(2):
                impatient.start_soon(visit, "impatient")
            await anyio.wait_all_tasks_blocked()
            assert node.wanted == 3
            node.allow(1)  # the first of them has it, but does not know yet
            impatient.cancel_scope.cancel()
    assert "last" in came
    assert (node.in_flight, node.wanted) == (0, 0)


async def test_a_live_call_is_not_starved_by_a_batch_where_the_limit_is_one() -> None:
    async with cluster(a={"seconds_per_item": 0.01}, wait_timeout=5.0) as made:
        await made.warm_up()
        allow(made, "a", 1)
        texts = [f"text {number}" for number in range(2000)]
        async with anyio.create_task_group() as group:
            group.start_soon(made.embed_batch, texts)
            await anyio.sleep(0.5)
            began = anyio.current_time()
            assert await made.embed() == vector()
            assert anyio.current_time() - began < 2.0
        await made.rest()
