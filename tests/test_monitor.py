"""The monitor in virtual time: what it asks, how often, and what a slow node costs."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
import trio.testing

from aiosollol.errors import NodeTimeout
from aiosollol.monitor import DOWN_INTERVAL, UP_INTERVAL, Monitor
from aiosollol.registry import Registry
from aiosollol.testing import FakeModel, FakeTransport, Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class SlowPs(FakeTransport):
    """A node behind a wedged runner: ``/api/ps`` stalls."""

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float
    ) -> bytes:
        if path == "/api/ps":
            await anyio.sleep(timeout)
            raise NodeTimeout(self.name, "stalled")
        return await super().request(method, path, body, timeout=timeout)


def watched(fake: FakeTransport) -> tuple[Registry, Monitor]:
    registry = Registry([{"url": "http://a.test", "name": "a"}])
    return registry, Monitor(registry, lambda name: fake, rng=random.Random(1))


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
        await anyio.sleep(0.7 * UP_INTERVAL)
        assert fake.probes - before == 3, "and no other for a while"
        group.cancel_scope.cancel()


async def test_a_removed_node_is_watched_no_more() -> None:
    fake = FakeTransport("a", models=["m"])
    registry, monitor = watched(fake)
    async with anyio.create_task_group() as group:
        group.start_soon(monitor.watch, "a")
        await anyio.sleep(1.0)
        registry.remove("a")
        with anyio.fail_after(2 * UP_INTERVAL):
            await anyio.sleep(1.5 * UP_INTERVAL)
    assert fake.probes == 3
