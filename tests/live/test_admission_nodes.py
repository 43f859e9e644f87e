"""Live requests without a node, and among nodes with different vectors."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from live_cluster import CHAT, EMBED, MODEL, cluster, vector, virtual_time

from aiosollol.core.node_transitions import ProbeFailed
from aiosollol.errors import (
    ModelNotFound,
    NodeUnreachable,
    NoNodeAvailable,
)
from aiosollol.testing import FakeModel, Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# No node is there.


async def test_a_call_does_not_wait_for_a_silent_cluster_longer_than_it_may() -> None:
    async with cluster(a={"faults_probes": True}, probed=False) as made:
        made["a"].fault = Fault.HANG
        began = anyio.current_time()
        with pytest.raises(NoNodeAvailable, match="a: has not answered yet"):
            await made.embed(timeout=1.0)
        assert anyio.current_time() - began == pytest.approx(1.0)
        await made.rest()


async def test_where_all_that_have_a_model_are_drained_the_error_says_so() -> None:
    async with cluster(a={}, b={"models": [CHAT]}) as made:
        await made.admin.drain("a")
        with pytest.raises(NoNodeAvailable, match="drained") as caught:
            await made.embed()
        assert caught.value.nodes == {"a": "is being drained"}
        with pytest.raises(ModelNotFound):
            await made.embed(model="typo")
        made.admin.resume("a")
        assert await made.embed() == vector()


# Vectors that may stand together.


OTHER = FakeModel(MODEL, dim=8, digest="b" * 64)


async def test_live_embeddings_stay_with_one_digest(caplog: pytest.LogCaptureFixture) -> None:
    old = {"models": [OTHER, CHAT]}
    async with cluster(x=old, a={}, b={}, y=old, c={}, strategy="round_robin") as made:
        assert {await made.embed() for _ in range(20)} == {vector()}
        assert made["x"].requests == made["y"].requests == 0
        for _ in range(5):
            await made.chat()
        assert made["x"].requests > 0, "it is their vectors that differ, and nothing else"
        warned = [record for record in caplog.records if "not comparable" in record.message]
        assert len(warned) == 1
        assert "x (bbbbbbbbbbbb), y (bbbbbbbbbbbb)" in warned[0].message


async def test_the_group_does_not_flip_when_the_others_become_faster_or_more() -> None:
    old = {"models": [OTHER]}
    async with cluster(a={"seconds_per_item": 1.0}, x=old, strategy="round_robin") as made:
        chosen = await made.embed()
        other = "x" if chosen == vector() else "a"
        for number in range(3):
            made.add(f"more{number}", models=[OTHER if other == "x" else EMBED])
            await made.probe()
            assert {await made.embed() for _ in range(5)} == {chosen}


async def test_one_node_alone_decides_too() -> None:
    """The pool begins with one node, and a faster one with another digest comes later."""
    async with cluster(x={"models": [OTHER]}, strategy="round_robin") as made:
        first = await made.embed()
        made.add("a")
        made.add("b")
        await made.probe()
        assert {await made.embed() for _ in range(6)} == {first}


async def test_at_the_start_the_nodes_are_given_a_moment_to_answer() -> None:
    """The outlier answers first; it would decide for all, as long as the pool lives."""

    async def probe_later(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        await made.monitor.probe(name)

    async with cluster(x={"models": [OTHER]}, a={}, b={}, c={}, probed=False) as made:
        for name, seconds in (("x", 0.01), ("a", 0.05), ("b", 0.06), ("c", 0.07)):
            made.group.start_soon(probe_later, name, seconds)
        assert await made.embed() == vector()
        assert anyio.current_time() == pytest.approx(0.07)


async def test_when_the_last_of_its_group_is_gone_the_change_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cluster(a={}, b={}, x={"models": [OTHER]}, strategy="round_robin") as made:
        assert await made.embed() == vector()
        for name in "ab":
            made.state.apply(name, ProbeFailed(NodeUnreachable(name, "refused")))
        assert await made.embed() == vector(model=OTHER)
        assert "are not comparable with earlier ones" in caplog.text
        await made.probe()
        assert {await made.embed() for _ in range(4)} == {vector(model=OTHER)}, "and no way back"


@pytest.mark.parametrize("alone", [False, True])
async def test_a_required_digest_is_required_of_one_node_too(alone: bool) -> None:
    nodes: dict[str, Any] = {"x": {"models": [OTHER]}, "y": {"models": [OTHER]}}
    if alone:
        del nodes["y"]
    pinned = {MODEL: EMBED.digest[:12]}
    async with cluster(**nodes, require_digest=pinned) as made:
        with pytest.raises(NoNodeAvailable, match=f"required digest {EMBED.digest[:12]}") as caught:
            await made.embed()
        assert set(caught.value.nodes) == set(nodes)
        with pytest.raises(NoNodeAvailable, match="required digest"):
            await made.embed_batch(["a", "b"])
        made.add("a")
        await made.probe()
        assert await made.embed() == vector()
        assert (await made.embed_batch(["a"]))[0].tobytes() == vector("a")
        await made.rest()
