"""A queue over a stub of a pool, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiosollol import (
    Embeddings,
    EngineError,
    SollolError,
)
from aiosollol.autobatch import AutoBatch, ResultPage
from aiosollol.testing import FakeModel, fake_vector

EMBED = FakeModel("nomic-embed-text", dim=16)
MODEL = "nomic-embed-text"


class Sleep(NamedTuple):
    until: float
    over: asyncio.Event
    woken: asyncio.Event


class VirtualClock:
    """A clock that advances only when a test advances it."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.jump = 0.0  # of the wall clock
        self._sleep: Sleep | None = None
        self._fell_asleep = asyncio.Event()

    def now(self) -> float:
        return self.time + self.jump

    def monotonic(self) -> float:
        return self.time

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        self._sleep = Sleep(self.time + seconds, asyncio.Event(), event)
        self._fell_asleep.set()
        waits = [asyncio.create_task(each.wait()) for each in (event, self._sleep.over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sleep = None
            for task in waits:
                task.cancel()

    async def asleep(self) -> Sleep:
        """Wait until the worker is done and waits for time to pass."""
        async with asyncio.timeout(30.0):  # a hang fails; nothing is measured
            while (sleep := self._sleep) is None or sleep.woken.is_set():
                self._fell_asleep.clear()
                await self._fell_asleep.wait()
        return sleep

    async def pass_time(self) -> None:
        """End the worker's wait, and wait until its next one."""
        sleep = await self.asleep()
        self.time = max(self.time, sleep.until)
        self._sleep = None
        sleep.over.set()
        await self.asleep()

    async def pass_until(self, time: float) -> None:
        """End every wait that is due by then."""
        while (await self.asleep()).until <= time:
            await self.pass_time()


class StubPool:
    """The part of a pool that a queue needs. answer: the error of a text, or of the whole batch."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.settings: list[dict[str, Any]] = []
        self.engines: list[str] = []
        self.broken_engine = ""
        self.active = 0
        self.nodes = [SimpleNamespace(spec=SimpleNamespace(key="a:1"))]
        self.view = SimpleNamespace(having=lambda _: self.nodes)
        self.wrong: Callable[[str], SollolError | None] = lambda _: None
        self.raises: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    def get_stats(self) -> dict[str, Any]:
        return {"node_performance": {"a:1": {"active_requests": self.active}}}

    async def embed_batch(self, model: str, texts: list[str], **settings: Any) -> Embeddings:
        assert settings.pop("on_error") == "return"
        engine = settings.pop("engine")
        if engine == self.broken_engine:
            raise EngineError(engine, "has no scheduler")
        self.engines.append(engine)
        self.batches.append(texts)
        self.settings.append({"model": model, **settings})
        self.entered.set()
        await self.gate.wait()
        if self.raises is not None:
            raise self.raises
        found = {row: self.wrong(text) for row, text in enumerate(texts)}
        errors = {row: error for row, error in found.items() if error is not None}
        return Embeddings(b"".join(vector(text) for text in texts), 16, errors=errors)


def vector(text: str) -> bytes:
    return bytes(fake_vector(EMBED.digest, text, EMBED.dim))


class Bench:
    """A queue over a stub in virtual time."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.clock = VirtualClock()
        self.pool = StubPool()
        self.path = path
        self.queue = AutoBatch(
            self.pool,  # type: ignore[arg-type]
            path,
            clock=self.clock,
            **options,
        )

    async def submit(self, count: int, model: str = MODEL, **options: Any) -> str:
        """Submit `count` documents, and let the worker process them."""
        job = await self.queue.submit([f"text {at}" for at in range(count)], model, **options)
        await self.clock.asleep()
        return job


@asynccontextmanager
async def bench(path: Path, **options: Any) -> AsyncIterator[Bench]:
    made = Bench(path / "queue.db", **options)
    async with made.queue:
        await made.clock.asleep()
        yield made


async def everything(queue: AutoBatch, job: str, page_size: int = 256) -> list[ResultPage]:
    return [page async for page in queue.results(job, page_size=page_size)]


async def vectors(queue: AutoBatch, job: str) -> dict[int, bytes]:
    return {
        at: row.tobytes()
        for page in await everything(queue, job)
        for at, row in zip(page.indices, page.vectors, strict=True)
    }


async def errors(queue: AutoBatch, job: str) -> dict[int, str]:
    return {at: words for page in await everything(queue, job) for at, words in page.errors.items()}
