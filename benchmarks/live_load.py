"""Live requests beside a batch: the real live path over fake nodes, in virtual time.

    python -m benchmarks.live_load [--only NAME] [--json FILE]

Each row is a figure of one scenario and its limit. Exits with 1 if a limit is missed.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from aiosollol.errors import SollolError
from benchmarks.live_chats import Row, Scenario, main

if TYPE_CHECKING:
    from live_cluster import Cluster

MODEL = "nomic-embed-text"
NODES, SECONDS = 4, 0.01
CAPACITY = NODES / SECONDS


def scenarios() -> Iterator[tuple[str, Scenario]]:
    """Names and scenarios."""
    for rate in (1.0, 10.0, 200.0):
        yield f"{rate:g} live embeds/s beside a batch", _beside_batch(rate)


@asynccontextmanager
async def _measured(**options: Any) -> AsyncIterator[Cluster]:
    """Four equal nodes of known costs, that are probed as by a pool."""
    from live_cluster import cluster

    nodes = {f"n{number}": {"seconds_per_item": SECONDS} for number in range(NODES)}
    async with cluster(**nodes, **options) as made:
        for name in nodes:
            made.group.start_soon(made.monitor.watch, name)
        await made.admin.warm(MODEL, None)
        await made.warm_up(times=3)
        yield made


class _Calls:
    """The outcomes of calls: when each began, by the clock, and its seconds; and the failures."""

    def __init__(self) -> None:
        self.answered: list[tuple[float, float]] = []
        self.failed = 0

    async def make(self, call: Callable[[], Awaitable[object]]) -> bool:
        """Whether the call was answered."""
        began = anyio.current_time()
        try:
            await call()
        except SollolError:
            self.failed += 1
            return False
        self.answered.append((began, anyio.current_time() - began))
        return True

    @property
    def seconds(self) -> list[float]:
        return sorted(seconds for _, seconds in self.answered)


async def _at_random(
    rate: Callable[[float], float], until: float, call: Callable[[], Awaitable[object]]
) -> None:
    """Poisson arrivals for `until` seconds, at a rate that may change with the time."""
    rng = random.Random(3)
    began = due = anyio.current_time()
    async with anyio.create_task_group() as group:
        while (due := due + rng.expovariate(rate(due - began))) - began < until:
            await anyio.sleep_until(due)
            group.start_soon(call)


def _beside_batch(rate: float, texts: int = 80_000) -> Scenario:
    async def run() -> list[Row]:
        """A batch that takes 200 s alone, and live embeddings for 180 s."""
        calls = _Calls()
        async with _measured() as made:
            await made.embed_batch([f"warm up {number}" for number in range(400)])
            began = anyio.current_time()
            batch = 0.0

            async def embed_all() -> None:
                nonlocal batch
                await made.embed_batch([f"text {number}" for number in range(texts)])
                batch = anyio.current_time() - began

            async def call() -> None:
                await calls.make(made.embed)

            async with anyio.create_task_group() as group:
                group.start_soon(embed_all)
                await anyio.sleep(2.0)
                await _at_random(lambda _: rate, 0.9 * texts / CAPACITY, call)
        alone = (texts + len(calls.answered)) / CAPACITY
        late = calls.seconds[int(0.99 * len(calls.seconds))]
        return [
            Row("", "mean, s", statistics.fmean(calls.seconds), most=0.1),
            Row("", "p99, s", late, most=0.25),
            Row("", "failed", calls.failed, most=0),
            Row("", "batch over both kinds of work", batch / alone, most=1.03),
        ]

    return run


if __name__ == "__main__":
    sys.exit(main(table=scenarios()))
