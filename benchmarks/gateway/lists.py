"""A list of texts over four nodes of equal speed: through ours, and through nginx."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from aiosollol.testing import FakeModel, FakeOllamaProcess
from benchmarks.client.bodies import MODEL
from benchmarks.gateway import asking, contestants
from benchmarks.gateway.contestants import Server, serving
from benchmarks.gateway.report import Lists

NODES, TEXTS, DIM = 4, 1000, 768
OVERHEAD, PER_ITEM = 0.001, 0.004
_PATIENCE = 120.0


def run(home: Path, *, rounds: int = 3, per_item: float = PER_ITEM) -> Lists:
    """Times in turns, every list with texts of its own. Raises RuntimeError for wrong vectors."""
    return asyncio.run(_run(home, rounds, per_item))


async def _run(home: Path, rounds: int, per_item: float) -> Lists:
    lists = Lists(TEXTS, NODES, [], [])
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                FakeOllamaProcess(
                    models=[FakeModel(MODEL, DIM)], overhead=OVERHEAD, seconds_per_item=per_item
                )
            )
            for _ in range(NODES)
        ]
        urls = [node.url for node in nodes]
        ours, nginx = (
            stack.enter_context(serving(start, home / f"lists-{name}", urls, asking.EMBED))
            for name, start in (("ours", contestants.ours), ("nginx", contestants.nginx))
        )
        for number in range(-1, rounds):  # the first one warms up: speeds are learned
            texts = [f"text {each} of list {number}, as long as a line" for each in range(TEXTS)]
            spread, vectors = await asyncio.to_thread(_embed, ours, texts)
            alone, expected = await asyncio.to_thread(_embed, nginx, texts)
            if not _is_same(vectors, expected):
                raise RuntimeError("the vectors through ours are not those through nginx")
            if number >= 0:
                lists.ours.append(spread)
                lists.nginx.append(alone)
    return lists


def _embed(server: Server, texts: list[str]) -> tuple[float, list[list[float]]]:
    """Seconds until the last byte of the answer, and its vectors."""
    body = json.dumps({"model": MODEL, "input": texts})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    connection = HTTPConnection("127.0.0.1", server.port, timeout=_PATIENCE)
    began = time.perf_counter()
    connection.request("POST", "/api/embed", body, headers)
    response = connection.getresponse()
    data = response.read()
    seconds = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {data[:500]!r}")
    answer: dict[str, Any] = json.loads(data)
    return seconds, answer["embeddings"]


def _is_same(some: list[list[float]], others: list[list[float]]) -> bool:
    return len(some) == len(others) == TEXTS and all(
        len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
        for a, b in zip(some, others, strict=True)
    )
