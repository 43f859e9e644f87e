"""One client in a process of its own, measured while it does as it is told.

    python -m benchmarks.client.contestant ours '{"urls": [...], "loop": "asyncio", "options": {}}'

It prints ``{"ready": true}``, or ``{"missing": "..."}`` if the client is not installed, then obeys
lines of JSON on stdin until its end: ``{"do": "embed", "calls": 1000, "in_flight": 32}``. Answers
hold CPU seconds (user and system, of this process alone) and elapsed seconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.client import clients, peers
from benchmarks.client.clients import Client

CLIENTS: dict[str, type[Client]] = {
    "ours": clients.Ours,
    "floor": clients.Floor,
    "ollama": peers.Ollama,
    "openai": peers.OpenAI,
    "httpx": peers.Httpx,
    "litellm": peers.LiteLLM,
    "sollol": peers.Sollol,
}


class Meter:
    """CPU and elapsed seconds between entering and leaving."""

    def __enter__(self) -> Meter:
        gc.collect()
        self._cpu, self._began = cpu_seconds(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall = time.perf_counter() - self._began
        self.cpu = cpu_seconds() - self._cpu


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def embed(client: Client, calls: int, in_flight: int) -> dict[str, Any]:
    """`calls` requests of one text each, `in_flight` at a time."""
    texts = iter(make_texts(calls, 100))
    vector: Any = None

    async def work() -> None:
        nonlocal vector
        for text in texts:
            vector = await client.embed(text)

    with Meter() as meter:
        await asyncio.gather(*(work() for _ in range(in_flight)))
    return {"cpu": meter.cpu, "wall": meter.wall, "check": [len(vector), vector[0], vector[-1]]}


async def batch(
    client: Client, texts: int, sizes: list[int], characters: int = 100
) -> dict[str, Any]:
    """A batch of new texts. `sizes`: of the chunks, where the client leaves it to us."""
    items = make_texts(texts, characters)
    with Meter() as meter:
        vectors, sizes = await client.embed_batch(items, sizes)
    last = vectors[-1]
    values = [len(vectors), vectors[0], last]
    if not isinstance(last, float):
        values = [sum(map(len, vectors)), vectors[0][0], last[-1]]
    return {"cpu": meter.cpu, "wall": meter.wall, "sizes": sizes, "check": values}


async def chat(client: Client, streams: int, in_flight: int) -> dict[str, Any]:
    """Whole streams; "first" is the median of the seconds until the first part."""
    firsts: list[float] = []
    sizes: list[int] = []
    left = iter(range(streams))

    async def work() -> None:
        for _ in left:
            began = time.perf_counter()
            sizes.append(
                await client.chat(lambda began=began: firsts.append(time.perf_counter() - began))
            )

    with Meter() as meter:
        await asyncio.gather(*(work() for _ in range(in_flight)))
    return {
        "cpu": meter.cpu,
        "wall": meter.wall,
        "first": statistics.median(firsts),
        "check": [max(sizes), float(min(sizes)), 0.0],
    }


COMMANDS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "embed": embed,
    "batch": batch,
    "chat": chat,
}


def make_texts(count: int, characters: int) -> list[str]:
    """New texts, all different, of about so many characters."""
    tail = "lorem ipsum dolor sit amet consectetur " * (characters // 39 + 1)
    start = time.perf_counter_ns()
    return [f"{start + number} {tail}"[:characters] for number in range(count)]


async def obey(name: str, urls: list[str], options: dict[str, Any]) -> None:
    try:
        client = CLIENTS[name](urls, **options)
        await client.open()
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=REPORT, flush=True)
        return
    print(json.dumps({"ready": True}), file=REPORT, flush=True)
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async for line in reader:
        command = json.loads(line)
        result = await COMMANDS[command.pop("do")](client, **command)
        print(json.dumps(result), file=REPORT, flush=True)
    await client.close()


def main() -> None:
    factory = None
    setting = json.loads(sys.argv[2])
    if setting["loop"] == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(obey(sys.argv[1], setting["urls"], setting["options"]))


# Some clients print to standard output; the results have it to themselves.
REPORT = os.fdopen(os.dup(1), "w")

if __name__ == "__main__":
    os.dup2(2, 1)
    main()
    os._exit(0)  # a peer's threads may not end by themselves
