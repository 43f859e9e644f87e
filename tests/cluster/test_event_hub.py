"""What a pool tells whoever watches it."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import pytest
from live_cluster import MODEL, Watcher, cluster, virtual_time

from aiosollol.cluster import event_hub
from aiosollol.cluster.event_hub import EventHub
from aiosollol.core.events import AttemptFailed, Hedged, Loading, NodeChanged, PoolEvent, Routed
from aiosollol.core.node_transitions import ProbeFailed
from aiosollol.errors import NodeUnreachable
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def event(number: int) -> PoolEvent:
    return NodeChanged(float(number), "a", "up")


# The stream.


async def test_events_come_in_order_and_end_when_the_hub_is_closed() -> None:
    hub = EventHub()
    stream = hub.watch()
    assert hub.is_watched
    for number in range(3):
        hub.tell(event(number))
    hub.close()
    hub.tell(event(4))
    assert [each.at async for each in stream] == [0.0, 1.0, 2.0]
    assert [each async for each in stream] == []
    assert not hub.is_watched


async def test_a_reader_waits_for_what_comes() -> None:
    hub = EventHub()
    seen: list[float] = []

    async def read() -> None:
        async with hub.watch() as stream:
            async for each in stream:
                seen.append(each.at)  # noqa: PERF401 - what is seen before the end counts

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        for number in range(3):
            await anyio.sleep(1.0)
            hub.tell(event(number))
        await anyio.sleep(1.0)
        assert seen == [0.0, 1.0, 2.0]
        hub.close()
    assert anyio.current_time() == pytest.approx(4.0)


async def test_who_reads_too_slowly_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_hub, "_KEPT", 5)
    hub = EventHub()
    slow, fast = hub.watch(), hub.watch()
    for number in range(12):
        hub.tell(event(number))
        assert (await anext(fast)).at == number
    assert (slow.missed, fast.missed) == (7, 0)
    hub.close()
    assert [each.at async for each in slow] == [7.0, 8.0, 9.0, 10.0, 11.0]


async def test_several_tasks_may_read_one_stream() -> None:
    hub = EventHub()
    stream = hub.watch()
    seen: list[float] = []

    async def read() -> None:
        async for each in stream:
            seen.append(each.at)  # noqa: PERF401 - as above

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(read)
        for number in range(5):
            await anyio.sleep(1.0)
            hub.tell(event(number))
        hub.close()
    assert sorted(seen) == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_a_stream_that_is_closed_or_dropped_costs_nothing_more() -> None:
    hub = EventHub()
    closed, dropped = hub.watch(), hub.watch()
    closed.close()
    closed.close()
    assert hub.is_watched
    del dropped
    gc.collect()
    assert not hub.is_watched
    hub.tell(event(1))
    assert [each async for each in closed] == []


async def test_a_reader_that_is_cancelled_misses_nothing() -> None:
    hub = EventHub()
    stream = hub.watch()
    with anyio.move_on_after(1.0):
        await anext(stream)
    hub.tell(event(1))
    assert (await anext(stream)).at == 1.0


# What is told.


async def test_every_kind_of_event_of_a_request() -> None:
    async with cluster(a={"load_seconds": 1.0}, b={}, strategy="priority") as made:
        made.node("a").state.spec  # noqa: B018
        watcher = Watcher(made)
        made["a"].fault = Fault.ERROR_500
        made.node("b").is_draining = True
        made.state.wake()
        async with anyio.create_task_group() as group:

            async def resume() -> None:
                await anyio.sleep(0.1)
                made.admin.resume("b")

            group.start_soon(resume)
            made["a"].fault = None
            made["a"].fail_next(Fault.ERROR_500)
            await made.embed()
        kinds = [type(each) for each in watcher.seen()]
        assert kinds[0] is Routed
        first, *others = watcher.of(Routed)
        assert (first.node, first.attempt, first.reason) == ("a", 1, "")
        assert others[0].attempt == 2
        assert "500" in others[0].reason
        failed = watcher.of(AttemptFailed)[0]
        assert (failed.node, failed.kind, failed.model) == ("a", "answer", MODEL)
        assert {each.node for each in watcher.of(Loading)} >= {"a"}
        assert [each.change for each in watcher.of(NodeChanged)] == ["resumed"]
        times = [each.at for each in watcher.seen()]
        assert times == sorted(times)


async def test_nodes_that_come_go_fall_and_rise() -> None:
    async with cluster(a={}) as made:
        watcher = Watcher(made)
        made.add("b")
        await made.monitor.probe("b")
        made.state.apply("b", ProbeFailed(NodeUnreachable("b", "refused")))
        await made.monitor.probe("b")
        await made.admin.drain("b")
        await made.admin.drain("b")
        made.admin.resume("b")
        made.admin.resume("b")
        await made.remove("b")
        seen = watcher.of(NodeChanged)
        assert [each.change for each in seen] == [
            "added",
            "down",
            "up",
            "draining",
            "resumed",
            "removed",
        ]
        assert {each.node for each in seen} == {"b"}
        assert seen[1].detail == "refused"


async def test_a_breaker_tells_that_it_opened_is_probed_and_closed() -> None:
    async with cluster(a={}, max_retries=0) as made:
        await made.embed()
        watcher = Watcher(made)
        made["a"].fail_next(Fault.ERROR_500, 6)
        for _ in range(6):
            with pytest.raises(Exception, match="500"):
                await made.embed()
        await anyio.sleep(3.0)
        for _ in range(3):
            await made.embed()
        changes = [each.change for each in watcher.of(NodeChanged)]
        assert changes == [
            "breaker open",
            "breaker half-open",
            "breaker open",
            "breaker half-open",
            "breaker closed",
        ]
        assert "500" in watcher.of(NodeChanged)[0].detail


async def test_a_hedged_request_is_told() -> None:
    nodes = {name: {"seconds_per_item": 0.1} for name in "ab"}
    async with cluster(**nodes) as made:
        for _ in range(100):
            await made.embed()
        watcher = Watcher(made)
        for name in "ab":
            made[name].fail_next(Fault.SLOW_BODY)
        await made.embed()
        (hedged,) = watcher.of(Hedged)
        assert {hedged.first, hedged.second} == {"a", "b"}


async def test_nothing_is_made_while_nobody_watches() -> None:
    async with cluster(a={}) as made:
        assert not made.state.hub.is_watched
        await made.embed()
        assert Watcher(made).seen() == []
