"""A cluster whose vectors are compared."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from live_cluster import CHAT, EMBED, MODEL, Cluster, cluster

from aiosollol.core.agreement import QUICK_CANARIES
from aiosollol.testing import FakeModel

WRONG = FakeModel(MODEL, dim=8, digest=EMBED.digest, weights="other")
NEW = FakeModel(MODEL, dim=8, digest="b" * 64)


@asynccontextmanager
async def watched(**given: Any) -> AsyncIterator[Cluster]:
    """A cluster with a canary. Nodes are `FakeModel`, or options of the node."""
    nodes = {
        name: {"models": [each, CHAT], "count_texts": True}
        if isinstance(each, FakeModel)
        else {"count_texts": True, **each}
        if isinstance(each, Mapping)
        else each
        for name, each in given.items()
    }
    async with cluster(strategy="round_robin", **nodes) as made:
        made.group.start_soon(made.canary.run)
        yield made


async def use(made: Cluster, *names: str) -> None:
    """Let these nodes answer an embedding, in this order, and then the canary do its work."""
    for name in names or list(made.transports):
        made.use_only(name)
        await made.embed()
        await anyio.sleep(0.001)
    made.use_only()
    await anyio.sleep(1.0)


def asked(made: Cluster) -> dict[str, int]:
    """How often each node computed the canaries."""
    one, other = (
        {name: fake.embedded[text] for name, fake in made.transports.items()}
        for text in QUICK_CANARIES
    )
    assert one == other
    return one


def left_out(made: Cluster) -> str:
    return "".join(node.name for node in made.state if node.is_distrusted(MODEL))
