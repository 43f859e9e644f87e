"""The agent's announcements: which changes are news, and how they are announced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from agent_parts import DEADLINE, REPORT, FakeSensors, served

from aiosollol.agent import sensors as readings_module
from aiosollol.agent import (
    serve,
    server,
)
from aiosollol.wire.agent import AgentReport, Gpu


def gpu(free: int | None, *, name: str = "x", total: int | None = 1000) -> AgentReport:
    return REPORT._replace(gpus=(Gpu(name, total, free),))


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        (REPORT, REPORT, False),
        (REPORT, REPORT._replace(cpu_load=0.9, memory_free=1), False),
        (REPORT, REPORT._replace(gpus=(REPORT.gpus[0]._replace(utilisation=1.0),)), False),
        (gpu(500), gpu(550), False),
        (gpu(500), gpu(450), False),
        (gpu(500), gpu(551), True),
        (gpu(500), gpu(449), True),
        (gpu(500), gpu(None), True),
        (gpu(None), gpu(0), True),
        (gpu(None), gpu(None), False),
        (gpu(500), gpu(500, total=2000), True),
        (gpu(500), gpu(500, total=None), True),
        (gpu(1, total=None), gpu(1, total=None), False),
        (gpu(1, total=None), gpu(2, total=None), True),
        (gpu(500), gpu(500, name="y"), True),
        (REPORT, REPORT._replace(gpus=()), True),
        (REPORT, REPORT._replace(machine="m2"), True),
        (REPORT, REPORT._replace(version="2"), True),
        (REPORT, REPORT._replace(ollama="http://127.0.0.1:1"), True),
    ],
)
def test_what_is_news(then: AgentReport, now: AgentReport, expected: bool) -> None:
    assert server.is_material(then, now) is expected


class FakeAnnouncer:
    """Notes what is announced, to whom, and whether it said goodbye."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.errors: list[Exception] = []

    @asynccontextmanager
    async def __call__(self, report: AgentReport, port: int | None) -> AsyncIterator[Any]:
        self.told.append((report, port))
        try:
            yield self
        finally:
            await asyncio.sleep(0)  # saying goodbye takes a while
            self.told.append("goodbye")

    async def update(self, report: AgentReport) -> None:
        if self.errors:
            raise self.errors.pop()
        self.told.append(report)


class Beats:
    """A pause that ends when the test says so."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[None] = asyncio.Queue()
        self._beat = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        assert seconds == server.BEAT_SECONDS
        self._waiting.put_nowait(None)
        await self._beat.wait()
        self._beat.clear()

    async def next(self, count: int = 1) -> None:
        """Let it beat, and wait until what it does has been done."""
        for _ in range(count):
            async with asyncio.timeout(DEADLINE):
                await self._waiting.get()
            self._beat.set()
        await self.rest()

    async def rest(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._waiting.get()
        self._waiting.put_nowait(None)


@pytest.fixture
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings_module, "FRESH_SECONDS", 0)


@pytest.mark.usefixtures("_always_fresh")
@pytest.mark.anyio
async def test_news_are_announced_and_nothing_else_is() -> None:
    # 460 and 540 are near the 500 that was announced; 560 is not, and 520 is near that.
    sensors = FakeSensors(*(gpu(free) for free in (500, 460, 540, 560, 520, 100)))
    announcer, beats = FakeAnnouncer(), Beats()
    async with served(sensors, advertise=announcer, pause=beats):
        await beats.next(5)
        assert announcer.told == [(gpu(500), None), gpu(560), gpu(100)]
    assert announcer.told[3:] == ["goodbye"]
    assert sensors.closes == 1


@pytest.mark.usefixtures("_always_fresh")
@pytest.mark.anyio
async def test_an_announcement_that_fails_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    sensors = FakeSensors(gpu(500), gpu(100), gpu(100))
    announcer, beats = FakeAnnouncer(), Beats()
    announcer.errors = [OSError("network is unreachable")]
    async with served(sensors, advertise=announcer, pause=beats):
        await beats.next()
        assert "network is unreachable" in caplog.text
        await beats.next()
        assert announcer.told == [(gpu(500), None), gpu(100)]


@pytest.mark.usefixtures("_always_fresh")
@pytest.mark.anyio
async def test_sensors_that_fail_do_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    sensors, beats = FakeSensors(), Beats()
    async with served(sensors, pause=beats) as url, aiohttp.ClientSession() as session:
        sensors.error = OSError("broken sensor")
        await beats.next()
        sensors.error = None
        await beats.next()
        async with session.get(url) as answer:
            assert answer.status == 200
    assert "broken sensor" in caplog.text


@pytest.mark.anyio
async def test_the_port_is_announced_where_others_can_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "is_loopback", lambda address: False)
    announcer = FakeAnnouncer()
    async with served(FakeSensors(), advertise=announcer) as url:
        port = int(url.split(":")[2].partition("/")[0])
        assert announcer.told == [(REPORT, port)]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.2", False),
        ("fe80::1%eth0", False),
        ("localhost", True),
        ("gpu-1.lan", False),
        ("", False),
    ],
)
def test_loopback_is_known(address: str, expected: bool) -> None:
    assert server.is_loopback(address) is expected


@pytest.mark.anyio
async def test_an_announcer_that_cannot_begin_ends_it_cleanly() -> None:
    @asynccontextmanager
    async def broken(report: AgentReport, port: int | None) -> AsyncIterator[Any]:
        raise OSError("no such interface")
        yield

    sensors = FakeSensors()
    with pytest.raises(OSError, match="no such interface"):
        await serve(sensors, port=0, advertise=broken)
    assert sensors.closes == 1
