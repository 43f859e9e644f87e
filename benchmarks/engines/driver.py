"""A contestant in a process of its own, which computes batches as it is told.

    python -m benchmarks.engines.driver dask '{"urls": [...], "workers": 2}'

It prints a line of JSON as soon as it is ready, then obeys lines of JSON on stdin, until its end:

- ``{"do": "batch", "texts": 47, "seed": "first", "engine": "dask"}``: the answer says when the
  batch began and ended, on the system's monotonic clock, and what is told of the engine.
- ``{"do": "write", "path": "..."}`` writes the vectors of the last batch there, and forgets them.

It runs in the interpreter of sollol too, so what it needs is imported where it is used.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from benchmarks.engines.work import MODEL, packed, texts

LOCAL, DASK, RAY, AUTO = "local", "dask", "ray", "auto"
LIGHT, HEAVY = "sollol", "sollol-dask"


class Driver(Protocol):
    """What is measured. `start` returns when a batch could be computed at once."""

    async def start(self) -> None: ...
    async def compute(self, batch: list[str], engine: str) -> dict[str, Any]: ...
    def vectors(self) -> bytes: ...
    async def close(self) -> None: ...


class Ours:
    """`OllamaPool` with an engine. Nodes are told to be machines of their own, as they would be."""

    def __init__(self, name: str, urls: list[str], workers: int) -> None:
        nodes = [{"url": url, "machine": f"m{number}"} for number, url in enumerate(urls)]
        self._engine = name
        options: dict[str, Any] = {"auto_discover": False}
        if name in (DASK, AUTO):
            options |= {"enable_dask": True, "dask_workers": workers}
        elif name == RAY:
            options |= {"enable_ray": True}
        self._pool: Any = import_module("aiosollol").OllamaPool(nodes, **options)
        self._done: Any = None

    async def start(self) -> None:
        await self._pool.__aenter__()
        # An engine starts with its first text.
        await self._pool.embed_batch(MODEL, ["to begin with"], engine=self._engine)

    async def compute(self, batch: list[str], engine: str) -> dict[str, Any]:
        self._done = await self._pool.embed_batch(MODEL, batch, engine=engine, on_error="return")
        note = self._done.report.engine
        return {"engine": note.name, "reason": note.reason, "workers": note.workers}

    def vectors(self) -> bytes:
        done, self._done = self._done, None
        rows: bytes = done.tobytes()
        return rows

    async def close(self) -> None:
        await self._pool.aclose()


class Theirs:
    """sollol 0.9.66, whose calls block, in its lightweight mode or with Dask, which is its default.

    Its cache is off, as ours is, and so is what it wants of a Redis: without one that makes its
    start eight seconds longer. It is told its nodes, and runs only where there is no network.
    """

    def __init__(self, name: str, urls: list[str], workers: int) -> None:
        split = [urlsplit(url) for url in urls]
        self._nodes = [{"host": each.hostname, "port": str(each.port)} for each in split]
        self._has_dask = name == HEAVY
        self._pool: Any = None
        self._done: Any = None

    async def start(self) -> None:
        if any(name != "lo" for _, name in socket.if_nameindex()):
            raise RuntimeError("sollol searches the network, so it runs only where there is none")

        def make() -> Any:
            return import_module("sollol").OllamaPool(
                nodes=self._nodes,
                enable_ray=False,
                enable_dask=self._has_dask,
                register_with_dashboard=False,
                discover_all_nodes=False,
                enable_cache=False,
                enable_gpu_redis=False,
            )

        self._pool = await asyncio.to_thread(make)

    async def compute(self, batch: list[str], engine: str) -> dict[str, Any]:
        self._done = await asyncio.to_thread(self._pool.embed_batch, MODEL, batch)
        return {}

    def vectors(self) -> bytes:
        done, self._done = self._done, None
        return packed([one["embeddings"][0] if one else None for one in done])

    async def close(self) -> None:
        """It takes nine seconds to stop, and leaves a thread: it is ended with the process."""


async def obey(driver: Driver, report: Any) -> None:
    """Start, then do as stdin says until its end."""

    def say(**what: Any) -> None:
        print(json.dumps(what), file=report, flush=True)

    await driver.start()
    say(ready=time.monotonic())
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        if order["do"] == "write":
            await asyncio.to_thread(Path(order["path"]).write_bytes, driver.vectors())
            say()
            continue
        batch = texts(order["texts"], order["seed"])
        began = time.monotonic()
        note = await driver.compute(batch, order["engine"])
        say(began=began, ended=time.monotonic(), note=note)
    await driver.close()


def main() -> None:
    name, setting = sys.argv[1], json.loads(sys.argv[2])
    # What is measured may print; the answers have standard output to themselves.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind = Theirs if name in (LIGHT, HEAVY) else Ours
    asyncio.run(obey(kind(name, **setting), report))
    sys.stderr.flush()
    os._exit(0)  # a peer's threads may not end by themselves


if __name__ == "__main__":
    main()
