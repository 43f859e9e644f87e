"""How long the event loop stands still, in CPU seconds of this process: other load has no part."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass
class Stalls:
    """longest, total: CPU seconds, between two turns of the loop and of all turns."""

    longest: float = 0.0
    total: float = 0.0


@asynccontextmanager
async def watched_loop() -> AsyncIterator[Stalls]:
    """Measure each turn of the event loop while the block runs.

    Threads count: one that does not release the interpreter's lock holds the loop too. The garbage
    collector does not search through what other tests have left.
    """
    stalls = Stalls()
    gc.freeze()

    async def watch() -> None:
        before = time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.process_time()
            stalls.longest = max(stalls.longest, now - before)
            stalls.total += now - before
            before = now

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield stalls
        await asyncio.sleep(0)
    finally:
        watching.cancel()
        gc.unfreeze()
