"""Program run in the lab by test_pool_lab.py: ``python pool_program.py FUNCTION ARGUMENTS``.

Each function prints lines of JSON for the test to read.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from aiosollol import NodeRegistry, OllamaPool


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def follow() -> None:
    """Run a pool without initial nodes that follows the network; print its nodes each time."""
    registry = NodeRegistry(auto_discover=True)
    async with OllamaPool(registry, watch_network=True):
        began = time.monotonic()
        while time.monotonic() - began < 60:
            version = registry.version
            urls = sorted(registry.nodes)
            say(nodes=urls, models=[sorted(node.state.models or ()) for node in registry])
            await registry.wait_changed(version)


async def find(texts: str) -> None:
    """Without initial nodes, embed on the first node found, then on all."""
    began = time.monotonic()
    async with OllamaPool() as pool:
        await pool.embed("nomic-embed-text", "first")
        first = time.monotonic() - began
        while pool._registry.is_searching:
            await asyncio.sleep(0.01)
        await pool.refresh()
        vectors = await pool.embed_batch(
            "nomic-embed-text",
            [f"text {n}" for n in range(int(texts))],
            force_mode="parallel",
        )
        say(
            nodes=sorted(pool._registry.nodes),
            machines=pool.count_unique_physical_hosts(),
            used=sorted(vectors.report.nodes),
            count=len(vectors),
            first=first,
        )


async def count(*urls: str) -> None:
    """Print the number of nodes and machines behind URLs, after learning local facts."""
    registry = NodeRegistry(urls)
    await registry.locate()
    say(nodes=sorted(registry.nodes), machines=len(set(registry.machines.values())))


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
