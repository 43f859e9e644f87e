"""The monitor in virtual time: what it asks, how often, and what a slow node costs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import anyio
import pytest
import trio.testing

from aiosollol.cluster.health_monitor import (
    CHECK_INTERVAL,
    DOWN_INTERVAL,
    METRICS_INTERVAL,
    PROBE_SECONDS,
    HealthMonitor,
)
from aiosollol.cluster.state import ClusterState
from aiosollol.errors import NodeTimeout
from aiosollol.testing import FakeModel, FakeTransport, Fault
from aiosollol.wire.agent import AgentReport, Gpu, dump_report

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class SlowPs(FakeTransport):
    """A node behind a wedged runner: ``/api/ps`` stalls."""

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> bytes:
        if path == "/api/ps":
            await anyio.sleep(timeout)
            raise NodeTimeout(self.name, "stalled")
        return await super().request(method, path, body, timeout=timeout, headers=headers)


def watched(fake: FakeTransport) -> tuple[ClusterState, HealthMonitor]:
    registry = ClusterState([{"url": "http://a.test", "name": "a"}])
    return registry, HealthMonitor(registry, lambda name: fake, rng=random.Random(1))


async def test_a_node_tells_what_it_is_and_has() -> None:
    registry, monitor = watched(
        FakeTransport("a", models=[FakeModel("m", dim=8)], version="0.13.5")
    )
    await monitor.probe("a")
    state = registry["a"].state
    assert (state.version, state.is_down) == ("0.13.5", False)
    assert state.has_model("m")


async def test_a_stalled_ps_holds_up_nobody_and_is_no_fault() -> None:
    registry, monitor = watched(SlowPs("a", models=["m"], version="0.13.5"))
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.probe, "a")
        version = registry.version
        await registry.wait_changed(version)
        assert anyio.current_time() < 0.001
        assert registry["a"].state.has_model("m")
    assert not registry["a"].state.is_down
    assert registry["a"].state.version == "0.13.5"


async def test_a_node_that_is_down_is_asked_more_often_and_comes_back() -> None:
    fake = FakeTransport("a", models=["m"], faults_probes=True)
    fake.fault = Fault.REFUSE
    registry, monitor = watched(fake)
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.watch, "a")
        await anyio.sleep(10 * DOWN_INTERVAL)
        assert registry["a"].state.is_down
        assert "refused" in registry["a"].state.error
        fake.fault = None
        before = fake.probes
        await anyio.sleep(1.3 * DOWN_INTERVAL)
        assert not registry["a"].state.is_down
        assert fake.probes - before == 3, "one look: tags, version, ps"
        await anyio.sleep(0.7 * METRICS_INTERVAL)
        assert fake.probes - before == 3, "and no other for a while"
        group.cancel_scope.cancel()


async def test_a_removed_node_is_watched_no_more() -> None:
    fake = FakeTransport("a", models=["m"])
    registry, monitor = watched(fake)
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.watch, "a")
        await anyio.sleep(1.0)
        registry.remove("a")
        with anyio.fail_after(2 * METRICS_INTERVAL):
            await anyio.sleep(1.5 * METRICS_INTERVAL)
    assert fake.probes == 3


async def test_a_node_that_is_well_is_asked_for_little_and_now_and_then_for_all() -> None:
    fake = FakeTransport("a", models=["m"])
    registry, monitor = watched(fake)
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.watch, "a")
        await anyio.sleep(10 * CHECK_INTERVAL)
        group.cancel_scope.cancel()
    asked = Counter(record.path for record in fake.log)
    assert 8 <= asked["/api/tags"] <= 13
    assert asked["/api/version"] == asked["/api/tags"]
    assert 33 <= asked["/api/ps"] <= 50
    assert not registry["a"].state.is_down


async def test_one_late_probe_is_asked_again_soon_and_two_are_too_many() -> None:
    fake = FakeTransport("a", models=["m"], faults_probes=True)
    registry, monitor = watched(fake)
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.watch, "a")
        await anyio.sleep(1.0)
        fake.fault = Fault.HANG
        await monitor.probe("a")
        assert not registry["a"].state.is_down
        assert registry["a"].state.missed == 1
        await anyio.sleep(PROBE_SECONDS + 1.0)
        assert registry["a"].state.is_down
        fake.fault = None
        await anyio.sleep(PROBE_SECONDS + 1.5 * DOWN_INTERVAL)
        assert not registry["a"].state.is_down
        group.cancel_scope.cancel()


async def test_an_agent_is_read_where_there_is_one() -> None:
    report = AgentReport("id", cpu_load=0.25, gpus=(Gpu("x", 2**30, 2**29),))

    class Agent(FakeTransport):
        is_silent = False

        async def request(self, *args: Any, **more: Any) -> bytes:
            if self.is_silent:
                raise NodeTimeout("a", "stalled")
            return dump_report(report)

    fake, agent = FakeTransport("a", models=["m"]), Agent("a agent")
    registry = ClusterState([{"url": "http://a.test", "name": "a"}])
    monitor = HealthMonitor(registry, lambda name: fake, agent_of=lambda name: agent)
    await monitor.measure("a")
    state = registry["a"].state
    assert (state.cpu_load, state.gpu_memory_free, state.machine) == (0.25, 2**29, "id")
    agent.is_silent = True
    await monitor.measure("a")
    state = registry["a"].state
    assert (state.cpu_load, state.gpu_memory_free, state.machine) == (None, None, "id")
    assert not state.is_down
