"""Model loads that hang: how long they are waited for, and when they are ended. In virtual time."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import Watcher, cluster, gather, vector, virtual_time

from aiosollol.core.events import Loading
from aiosollol.core.routing.load_times import HUNG_LOADS
from aiosollol.errors import NodeTimeout
from aiosollol.live.model_loader import HUNG_LOAD_SECONDS, LOAD_SECONDS

pytestmark = pytest.mark.anyio

LOAD = 5.0
COLD = {"load_seconds": LOAD}
HUNG = {"load_seconds": 10_000.0}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


def failed_loads(watcher: Watcher) -> dict[str, float]:
    """Seconds of the loads that failed, by node."""
    return {each.node: each.seconds or 0.0 for each in watcher.of(Loading) if each.error}


async def test_a_request_leaves_a_load_that_hangs_if_another_node_has_the_model() -> None:
    async with cluster(a=COLD, b=HUNG) as made:
        made.use_only("a")
        await made.embed()
        made.use_only("b")
        began = anyio.current_time()
        async with anyio.create_task_group() as group:

            async def call() -> None:
                assert await made.embed(timeout=300.0) == vector()
                assert anyio.current_time() - began == pytest.approx(HUNG_LOADS * LOAD, rel=0.05)

            group.start_soon(call)
            await anyio.sleep(1.0)
            made.use_only("a", "b")


async def test_a_request_waits_for_a_slow_load_if_there_is_no_other_node() -> None:
    async with cluster(a={"load_seconds": 100.0}) as made:
        assert await made.embed(timeout=300.0) == vector()


@pytest.mark.parametrize("is_known", [True, False], ids=["known before", "known while it hangs"])
async def test_a_load_that_hangs_is_ended_once_another_shows_how_long_one_takes(
    *, is_known: bool
) -> None:
    async with cluster(a=COLD, b=HUNG) as made:
        watcher = Watcher(made)
        if is_known:
            made.use_only("a")
            await made.embed()
        made.use_only("b")
        with pytest.raises(NodeTimeout):
            await made.embed(timeout=1.0)
        if not is_known:
            made.use_only("a")
            await made.embed()
        await anyio.sleep(2 * HUNG_LOAD_SECONDS)
        (seconds,) = failed_loads(watcher).values()
        ended = HUNG_LOAD_SECONDS if is_known else HUNG_LOAD_SECONDS + 1.0 + LOAD
        assert seconds == pytest.approx(ended, abs=0.5)
        assert not made.node("b").loading


async def test_a_load_of_a_model_that_takes_long_everywhere_is_not_ended() -> None:
    async with cluster(a={"load_seconds": 100.0}, b={"load_seconds": 250.0}) as made:
        made.use_only("a")
        await made.embed(timeout=300.0)
        made.use_only("b")
        assert await made.embed(timeout=300.0) == vector()


async def test_without_any_load_seen_the_servers_limit_holds() -> None:
    async with cluster(a=HUNG, b=HUNG) as made:
        watcher = Watcher(made)
        results = await gather(*[partial(made.embed, timeout=1.0)] * 2)
        assert all(isinstance(each, NodeTimeout) for each in results)
        await anyio.sleep(LOAD_SECONDS + 1.0)
        seconds = failed_loads(watcher)
        assert seconds
        assert all(each == pytest.approx(LOAD_SECONDS, abs=0.5) for each in seconds.values())
