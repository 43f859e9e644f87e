"""Send live requests and print the pool's events: routing, failures, model loads.

    python examples/watch_events.py http://10.0.0.2:11434 http://10.0.0.3:11434

Without arguments it uses the servers in OLLAMA_NODES (separated by spaces), else those that a pool
finds by itself. OLLAMA_MODEL names the embedding model.
"""

import asyncio
import os
import sys

from aiosollol import OllamaPool
from aiosollol.core.events import AttemptFailed, Hedged, Loading, NodeChanged, Routed

NODES = sys.argv[1:] or os.environ.get("OLLAMA_NODES", "").split() or None
MODEL = os.environ.get("OLLAMA_MODEL", "nomic-embed-text")


async def watch(pool: OllamaPool) -> None:
    async for event in pool.events():  # until the pool is closed
        match event:
            case Routed(node=node, attempt=attempt):
                print(f"{node}: request, attempt {attempt}")
            case Hedged(first=first, second=second):
                print(f"{second}: hedged request, because {first} is late")
            case AttemptFailed(node=node, error=error):
                print(f"{node}: failed: {error}")
            case Loading(node=node, seconds=None):
                print(f"{node}: loads {event.model}")
            case Loading(node=node, seconds=seconds):
                print(f"{node}: loading {event.model} took {seconds:.2f} s")
            case NodeChanged(node=node, change=change):
                print(f"{node}: {change} {event.detail}".rstrip())


async def main() -> None:
    async with OllamaPool(NODES) as pool:
        watching = asyncio.create_task(watch(pool))
        texts = [f"text number {number}" for number in range(20)]
        vectors = await asyncio.gather(*(pool.embed(MODEL, text) for text in texts))
        print(f"{len(vectors)} vectors of {len(vectors[0])} numbers")
        print(await pool.route(MODEL))  # where the next request would go, and why
    await watching


if __name__ == "__main__":
    asyncio.run(main())
