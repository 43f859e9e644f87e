"""Queues in files, and SQL statements that change them from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiosollol import (
    OllamaPool,
)
from aiosollol.autobatch import (
    AutoBatch,
)
from aiosollol.testing import FakeModel, FakeTransport

EMBED = FakeModel("nomic-embed-text", dim=16)
MODEL = "nomic-embed-text"
TEXTS = [f"text {at} of some" for at in range(200)]


@asynccontextmanager
async def fake_pool(
    model: FakeModel = EMBED,
) -> AsyncIterator[tuple[OllamaPool, FakeTransport]]:
    node = FakeTransport("fake", models=[model], count_texts=True)
    async with OllamaPool(["127.0.0.1:1"], transport_factory=lambda _: node) as pool:
        yield pool, node


async def vectors_of(queue: AutoBatch, job: str) -> tuple[dict[int, bytes], dict[int, str]]:
    found: dict[int, bytes] = {}
    errors: dict[int, str] = {}
    async for page in queue.results(job):
        found |= {at: row.tobytes() for at, row in zip(page.indices, page.vectors, strict=True)}
        errors |= page.errors
    return found, errors
