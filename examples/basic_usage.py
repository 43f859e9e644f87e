"""Embed texts on several Ollama servers, then rank them by closeness to a question.

    python examples/basic_usage.py http://10.0.0.2:11434 http://10.0.0.3:11434

Without arguments it uses the servers in OLLAMA_NODES (separated by spaces), else those that a pool
finds by itself. OLLAMA_MODEL names the embedding model.
"""

import asyncio
import os
import sys
from operator import mul

from aiosollol import OllamaPool

NODES = sys.argv[1:] or os.environ.get("OLLAMA_NODES", "").split() or None
MODEL = os.environ.get("OLLAMA_MODEL", "nomic-embed-text")

TEXTS = [
    "The cat sleeps on the warm windowsill.",
    "Bread rises because yeast makes carbon dioxide.",
    "A train leaves the station every ten minutes.",
    "Whales breathe air although they live in the sea.",
]
QUESTION = "How is bread made?"


async def main() -> None:
    async with OllamaPool(NODES) as pool:
        vectors = await pool.embed_batch(MODEL, TEXTS)  # in the order of TEXTS
        question = await pool.embed(MODEL, QUESTION)

    print(vectors.report)
    # The vectors have length 1, so the dot product is the cosine.
    scores = [sum(map(mul, vector, question)) for vector in vectors]
    for score, text in sorted(zip(scores, TEXTS, strict=True), reverse=True):
        print(f"{score:.3f}  {text}")


if __name__ == "__main__":
    asyncio.run(main())
