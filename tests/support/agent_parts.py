"""An agent over HTTP with fake sensors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiosollol.agent import (
    serve,
)
from aiosollol.wire.agent import AgentReport, Gpu

DEADLINE = 60.0  # a hang fails; nothing is measured
REPORT = AgentReport("m1", "http://127.0.0.1:11434", "1", 0.5, 64, 32, (Gpu("x", 1000, 500, 0.1),))


class FakeSensors:
    """Reports REPORT, or each of `reports` in turn; may hang or raise."""

    def __init__(self, *reports: AgentReport) -> None:
        self.reports = list(reports)
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.reads = 0
        self.closes = 0
        self.threads: set[int] = set()

    def read(self) -> AgentReport:
        self.reads += 1
        self.threads.add(threading.get_ident())
        assert self.may_go_on.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        return self.reports.pop(0) if self.reports else REPORT

    def close(self) -> None:
        self.closes += 1


@asynccontextmanager
async def served(sensors: Any, **options: Any) -> AsyncIterator[str]:
    """Run `serve`; yields its URL. Cancels it at the end, and checks that no task is left."""
    before = asyncio.all_tasks()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_ready(url: str, report: AgentReport) -> None:
        ready.set_result(url)

    task = asyncio.create_task(serve(sensors, port=0, on_ready=on_ready, **options))
    try:
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE)
        if task.done():
            task.result()
        yield ready.result()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
            task.result()
        assert asyncio.all_tasks() == before
