"""Processes that use a queue, to be killed: ``python autobatch_program.py PATH [URL ...]``.

Each line on stdin forks one, which takes milliseconds instead of a second for a new Python.
"embed" embeds queued documents with the nodes at URLs, and prints "embedded" after each batch,
before it is stored. "submit" submits jobs of ten documents, and prints the id of each. "started
PID" is printed when a process starts, and "ended" when it has ended.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from aiosollol import OllamaPool
from aiosollol.autobatch import AutoBatch

MODEL = "nomic-embed-text"


async def embed(path: str, urls: list[str]) -> None:
    async with OllamaPool(urls, same_machine="share") as pool:
        embed_batch = pool.embed_batch

        async def telling(*args: Any, **kwargs: Any) -> Any:
            embeddings = await embed_batch(*args, **kwargs)
            print("embedded", flush=True)
            return embeddings

        pool.embed_batch = telling  # type: ignore[method-assign, assignment]
        async with AutoBatch(pool, path):
            await asyncio.Event().wait()


async def submit(path: str) -> None:
    async with AutoBatch(None, path) as queue:
        while True:
            print(await queue.submit([f"document {at}" for at in range(10)], MODEL), flush=True)


def main(path: str, *urls: str) -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            asyncio.run(embed(path, list(urls)) if line.strip() == "embed" else submit(path))
            os._exit(0)
        print(f"started {pid}", flush=True)
        os.waitpid(pid, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
