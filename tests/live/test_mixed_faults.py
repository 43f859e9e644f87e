"""Traffic while one node flaps, one is slow at times, and one refuses all; in virtual time."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
from live_cluster import Cluster, cluster, vector, virtual_time

from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio

FAULTY, SOUND = "abc", "def"
SECONDS = 0.02
"""For one request."""
RATE, DURATION = 60.0, 30.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def flap(made: Cluster, name: str) -> None:
    while True:
        made[name].fault = Fault.REFUSE
        await anyio.sleep(3.0)
        made[name].fault = None
        await anyio.sleep(3.0)


async def be_slow_at_times(made: Cluster, name: str) -> None:
    while True:
        made[name].overhead = 10 * SECONDS
        await anyio.sleep(8.0)
        made[name].overhead = SECONDS
        await anyio.sleep(8.0)


async def latencies(made: Cluster, rng: random.Random) -> list[float]:
    """Of embeddings that come at random for a minute, sorted. Every one has to be answered."""
    found: list[float] = []

    async def call() -> None:
        began = anyio.current_time()
        assert await made.embed(timeout=30.0) == vector()
        found.append(anyio.current_time() - began)

    ends_at = anyio.current_time() + DURATION
    async with anyio.create_task_group() as group:
        while anyio.current_time() < ends_at:
            await anyio.sleep(rng.expovariate(RATE))
            group.start_soon(call)
    return sorted(found)


@pytest.mark.parametrize("refusal", [Fault.BAD_400_NO_EMBEDDINGS, Fault.BAD_400_UNKNOWN])
@pytest.mark.parametrize("seed", range(2))
async def test_mixed_faults_cost_no_call_and_little_time(seed: int, refusal: Fault) -> None:
    rng = random.Random(seed)
    nodes = {name: {"overhead": SECONDS} for name in FAULTY + SOUND}
    async with cluster(**nodes) as made:
        for name in nodes:
            made.group.start_soon(made.monitor.watch, name)
        await made.warm_up(times=3)
        healthy = await latencies(made, rng)
        made.group.start_soon(flap, made, "a")
        made.group.start_soon(be_slow_at_times, made, "b")
        made["c"].fault = refusal
        before = {name: made[name].requests for name in nodes}
        faulty = await latencies(made, rng)
        shares = {name: (made[name].requests - before[name]) / len(faulty) for name in nodes}
        assert p99(faulty) <= 2.0 * p99(healthy)
        assert all(shares[name] > 0.2 for name in SOUND), shares
        assert shares["c"] < 0.03


def p99(found: list[float]) -> float:
    return found[int(0.99 * len(found))]
