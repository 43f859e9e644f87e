"""A model that left a node's memory unnoticed: the answer teaches the load, not the cost."""

from __future__ import annotations

from typing import Any

import pytest
from live_cluster import CHAT, EMBED, MODEL, TALKER, cluster, virtual_time

from aiosollol.core.routing.strategies import RouteRequest

pytestmark = pytest.mark.anyio

NODE = {"seconds_per_item": 0.01, "seconds_per_chat_token": 0.01, "load_seconds": 3.0}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


async def test_the_first_answer_of_a_node_included_its_load() -> None:
    async with cluster(a=NODE) as made:
        await made.embed()  # another program, as far as the next pool knows
        await made.chat()
        made.state.remove("a")
        made.state.add({"url": "http://a.test", "name": "a"})
        await made.probe()
        made["a"].memory.unload(EMBED.name)
        made["a"].memory.unload(CHAT.name)
        node = made.node("a")
        assert not node.is_cold(MODEL), "it was listed by /api/ps"
        await made.embed()
        assert node.load_seconds("another model") == pytest.approx(3.0)
        assert node.seconds(RouteRequest(MODEL, 4.0)) == pytest.approx(0.01, rel=0.2)
        await made.chat()
        talk = node.seconds(RouteRequest(TALKER, 20.0, "chat"))
        assert talk == pytest.approx(0.04, rel=0.2)


async def test_a_later_answer_that_included_a_load_changes_no_cost() -> None:
    async with cluster(a=NODE) as made:
        options = {"temperature": 0}  # not supported by the endpoint without timings
        for _ in range(3):
            await made.embed(options=options)
        node = made.node("a")
        before = node.costs
        made["a"].memory.unload(EMBED.name)
        await made.embed(options=options)
        assert node.costs == before
        assert node.standing.pace(made.state.clock()) == 1.0, "it is not slow either"
        assert node.limit >= 2
