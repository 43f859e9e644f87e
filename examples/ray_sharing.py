"""Share nodes with other programs by weight. Start it several times, with different names.

    python examples/ray_sharing.py --name search --weight 3 http://10.0.0.2:11434
    python examples/ray_sharing.py --name import --weight 1 http://10.0.0.2:11434

The first one starts a Ray cluster on this machine, which the others find (`ray start --head` starts
a permanent one). Each keeps the nodes as busy as its lease allows, and prints every second the
number of vectors received and its limit of running requests on each node.

Without addresses it uses the servers in OLLAMA_NODES (separated by spaces), else those that a pool
finds by itself. OLLAMA_MODEL names the embedding model.
"""

import argparse
import asyncio
import os

from aiosollol import OllamaPool

MODEL = os.environ.get("OLLAMA_MODEL", "nomic-embed-text")
AT_ONCE = 16  # more than the nodes take, so that the programs compete


async def embed(pool: OllamaPool, counts: list[int]) -> None:
    while True:
        await pool.embed(MODEL, f"text number {counts[0]}")
        counts[0] += 1


async def report(pool: OllamaPool, counts: list[int], seconds: int) -> None:
    for _ in range(seconds):
        before = counts[0]
        await asyncio.sleep(1.0)
        ray = pool.get_stats()["ray"]
        state = f"{ray['members']} programs" if ray["connected"] else "alone"
        print(f"{counts[0] - before:5} vectors/s, {state}, may have {ray['leases']}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="example")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("nodes", nargs="*")
    given = parser.parse_args()
    nodes = given.nodes or os.environ.get("OLLAMA_NODES", "").split() or None
    counts = [0]
    async with OllamaPool(
        nodes, enable_ray=True, app_name=given.name, app_weight=given.weight
    ) as pool:
        working = [asyncio.create_task(embed(pool, counts)) for _ in range(AT_ONCE)]
        try:
            await report(pool, counts, given.seconds)
        finally:
            for task in working:
                task.cancel()
            await asyncio.wait(working)


if __name__ == "__main__":
    asyncio.run(main())
