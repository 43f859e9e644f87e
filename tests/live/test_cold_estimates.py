"""What one node's load shows of the others: they are used when that gains time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from live_cluster import cluster, gather, virtual_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def test_cold_nodes_that_load_fast_are_used_under_load() -> None:
    nodes = {name: {"seconds_per_item": 0.034, "load_seconds": 0.3} for name in "abcd"}
    async with cluster(**nodes) as made:
        for _ in range(20):
            await made.embed()
        until = anyio.current_time() + 20.0

        async def call() -> None:
            while anyio.current_time() < until:
                await made.embed()

        before = sum(fake.items for fake in made.transports.values())
        await gather(*[call] * 16)
        items = sum(fake.items for fake in made.transports.values()) - before
        assert items > 0.95 * 4 * 20.0 / 0.034
        await made.rest()
