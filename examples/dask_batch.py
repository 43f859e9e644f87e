"""Embed many texts on Dask workers: a batch returned to the program, and a collection on disk.

    python examples/dask_batch.py http://10.0.0.2:11434 http://10.0.0.3:11434

Without arguments it uses the servers in OLLAMA_NODES (separated by spaces), else those that a pool
finds by itself. OLLAMA_MODEL names the embedding model. SOLLOL_DASK_ADDRESS is the URL of a
scheduler; without it a cluster of two workers is started. Needs the extra "dask".
"""

import asyncio
import os
import sys
import tempfile

import dask.bag

from aiosollol import OllamaPool

NODES = sys.argv[1:] or os.environ.get("OLLAMA_NODES", "").split() or None
MODEL = os.environ.get("OLLAMA_MODEL", "nomic-embed-text")


async def main() -> None:
    async with OllamaPool(NODES, enable_dask=True, dask_workers=2) as pool:
        texts = [f"passage {number} of a long book" for number in range(2000)]
        vectors = await pool.embed_batch(MODEL, texts, engine="dask")
        print(vectors.report)

        # The workers create the texts and write the vectors.
        numbers = dask.bag.from_sequence(range(2000), npartitions=4)
        passages = numbers.map(lambda number: f"passage {number} of another book")
        with tempfile.TemporaryDirectory() as directory:
            report = await pool.embed_bag(MODEL, passages, directory)
            print(report)
            print(sorted(os.listdir(directory)))


if __name__ == "__main__":
    asyncio.run(main())
