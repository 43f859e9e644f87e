"""The agent's server: readings shared by its clients, its answers over HTTP, its start and end."""

from __future__ import annotations

import asyncio
import json
import threading

import aiohttp
import pytest
from agent_parts import DEADLINE, REPORT, FakeSensors, served

from aiosollol import __version__
from aiosollol.agent import (
    Readings,
    serve,
    server,
)
from aiosollol.agent import sensors as readings_module
from aiosollol.errors import InvalidInput, SollolError
from aiosollol.wire.agent import load_report


@pytest.mark.anyio
async def test_a_reading_is_good_for_a_second_and_for_all() -> None:
    sensors, now = FakeSensors(), [100.0]
    readings = Readings(sensors, clock=lambda: now[0])
    assert await asyncio.gather(*(readings.latest() for _ in range(50))) == [REPORT] * 50
    now[0] = 100.9
    await readings.latest()
    assert sensors.reads == 1
    now[0] = 101.0
    await readings.latest()
    assert sensors.reads == 2
    assert threading.get_ident() not in sensors.threads
    await readings.aclose()
    assert sensors.closes == 1


@pytest.mark.anyio
async def test_sensors_that_hang_hold_up_one_thread_and_no_request() -> None:
    sensors = FakeSensors()
    sensors.may_go_on.clear()
    readings = Readings(sensors, timeout=0)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await readings.latest()
    await readings.aclose()  # not even the end
    assert (sensors.reads, sensors.closes) == (1, 0)
    sensors.may_go_on.set()
    assert await readings.latest(DEADLINE) == REPORT
    assert sensors.reads == 1
    await Readings(sensors).aclose()
    assert sensors.closes == 1


@pytest.mark.anyio
async def test_a_client_that_leaves_does_not_cancel_the_reading_for_others() -> None:
    sensors = FakeSensors()
    sensors.may_go_on.clear()
    readings = Readings(sensors, timeout=DEADLINE)
    leaving, staying = (asyncio.create_task(readings.latest()) for _ in range(2))
    while not sensors.reads:
        await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    sensors.may_go_on.set()
    assert await staying == REPORT
    assert sensors.reads == 1
    await readings.aclose()


@pytest.mark.anyio
async def test_sensors_that_fail_are_asked_again() -> None:
    sensors = FakeSensors()
    sensors.error = OSError("gone")
    readings = Readings(sensors)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            await readings.latest()
    sensors.error = None
    assert await readings.latest() == REPORT
    await readings.aclose()


@pytest.mark.anyio
async def test_it_answers_get_and_head() -> None:
    sensors = FakeSensors()
    async with served(sensors) as url, aiohttp.ClientSession() as session:
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/agent")
        async with session.get(url) as answer:
            body = await answer.read()
        assert answer.status == 200
        assert load_report("a", body) == REPORT
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"] == f"aiosollol/{__version__}"
        async with session.head(url) as answer:
            assert await answer.read() == b""
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(body))
    assert sensors.reads == 1
    assert sensors.closes == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/agent/", 404),
        ("GET", "/agent/gpus", 404),
        ("GET", "/AGENT", 404),
        ("GET", "/api/tags", 404),
        ("POST", "/api/generate", 404),
        ("GET", "/../etc/passwd", 404),
        ("POST", "/agent", 405),
        ("OPTIONS", "/agent", 405),
    ],
)
@pytest.mark.anyio
async def test_it_answers_nothing_else(method: str, path: str, status: int) -> None:
    sensors = FakeSensors()
    async with served(sensors) as url, aiohttp.ClientSession() as session:
        base = url.removesuffix("/agent")
        async with session.request(method, base + path, data=b"x" * 100) as answer:
            told = json.loads(await answer.read())
        assert answer.status == status
        assert set(told) == {"error"}
        assert answer.headers["Server"] == f"aiosollol/{__version__}"
        assert answer.headers.get("Allow") == ("GET,HEAD" if status == 405 else None)
        assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.anyio
async def test_sensors_that_fail_are_an_error_of_the_server(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings_module, "FRESH_SECONDS", 0)
    sensors = FakeSensors()
    async with served(sensors) as url, aiohttp.ClientSession() as session:
        sensors.error = OSError("secret words")
        async with session.get(url) as answer:
            told = await answer.text()
        assert answer.status == 500
        assert "secret" not in told
        sensors.error = None
        async with session.get(url) as answer:
            assert answer.status == 200
    assert "secret words" in caplog.text


@pytest.mark.anyio
async def test_sensors_that_hang_are_no_answer_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings_module, "FRESH_SECONDS", 0)
    monkeypatch.setattr(server, "Readings", lambda sensors: Readings(sensors, timeout=0))
    sensors = FakeSensors()
    async with served(sensors) as url, aiohttp.ClientSession() as session:
        sensors.may_go_on.clear()
        async with session.get(url) as answer:
            assert "do not answer in time" in (await answer.json())["error"]
        assert answer.status == 503
        sensors.may_go_on.set()


@pytest.mark.anyio
async def test_a_port_that_is_taken_is_named() -> None:
    async with served(FakeSensors()) as url:
        port = int(url.split(":")[2].partition("/")[0])
        sensors = FakeSensors()
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1 port {port}: "):
            await serve(sensors, port=port)
        assert sensors.closes == 1


@pytest.mark.parametrize("port", [-1, 65536])
@pytest.mark.anyio
async def test_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(InvalidInput, match="port must be between 0 and 65535"):
        await serve(FakeSensors(), port=port)


@pytest.mark.anyio
async def test_sensors_that_hang_at_the_start_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "START_SECONDS", 0)
    monkeypatch.setattr(server, "Readings", lambda sensors: Readings(sensors, timeout=0))
    sensors = FakeSensors()
    sensors.may_go_on.clear()
    with pytest.raises(SollolError, match="is a GPU stuck"):
        await serve(sensors, port=0)
    sensors.may_go_on.set()
