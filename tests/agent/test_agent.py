"""The agent: what it reads from a machine, what it serves, and when it has news."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections import namedtuple
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest

from aiosollol import __version__
from aiosollol.agent import (
    MachineSensors,
    Readings,
    serve,
    server,
    stated_gpu,
)
from aiosollol.agent import sensors as readings_module
from aiosollol.agent.sensors import CpuLoad, Gpus, Metrics
from aiosollol.errors import InvalidInput, MissingExtra, SollolError
from aiosollol.wire.agent import AgentReport, Gpu, load_report

GIB = 2**30
DEADLINE = 60.0  # a hang fails; nothing is measured
REPORT = AgentReport("m1", "http://127.0.0.1:11434", "1", 0.5, 64, 32, (Gpu("x", 1000, 500, 0.1),))


# ---- the load of the CPU


@pytest.mark.parametrize(
    ("samples", "loads"),
    [
        ([(0, 0, 0)], [None]),
        ([(0, 5, 10), (2, 6, 14)], [None, 0.25]),
        ([(0, 5, 10), (2, 5, 14), (4, 9, 18)], [None, 0.0, 1.0]),
        # Of less than two seconds while there is no more, but not of an instant.
        ([(0, 0, 0), (0.05, 1, 1), (0.5, 1, 2)], [None, None, 0.5]),
        # At least two seconds back: the third looks back to the first, the fourth to the second.
        ([(0, 0, 0), (1, 2, 2), (2, 2, 4), (3, 2, 6)], [None, 1.0, 0.5, 0.0]),
        # Seldom asked: all the time since the last sample.
        ([(0, 0, 0), (30, 30, 60), (60, 30, 120)], [None, 0.5, 0.0]),
        # Counters that stand still or go back change nothing, then it goes on from there.
        ([(0, 0, 0), (2, 1, 4), (4, 1, 4), (6, 0, 2), (8, 1, 4)], [None, 0.25, 0.25, 0.25, 0.5]),
        # More busy than time there was, and less than none.
        ([(0, 0, 0), (2, 9, 4), (4, 1, 8)], [None, 1.0, 0.0]),
    ],
)
def test_the_load_is_that_of_the_last_seconds(
    samples: list[tuple[float, float, float]], loads: list[float | None]
) -> None:
    load = CpuLoad()
    assert [load.add(*sample) for sample in samples] == loads


Times = namedtuple("Times", "user system idle iowait guest guest_nice", defaults=[0.0, 0.0])
Memory = namedtuple("Memory", "total available")


class FakePsutil:
    """A machine whose counters are what `times` says."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.times = Times(0, 0, 0, 0)
        self.memory: Any = Memory(64, 48)
        self.error: Exception | None = None

    def cpu_times(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.times

    def virtual_memory(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.memory


def test_guests_are_counted_once_and_waiting_is_not_work() -> None:
    psutil, now = FakePsutil(), [0.0]
    metrics = Metrics(psutil=psutil, clock=lambda: now[0])
    now[0] = 10.0
    psutil.times = Times(user=5, system=1, idle=10, iowait=2, guest=2, guest_nice=1)
    assert metrics.cpu_load() == (5 + 1) / (5 + 1 + 10 + 2)


def test_memory_that_can_be_had_is_never_more_than_there_is() -> None:
    psutil = FakePsutil()
    assert Metrics(psutil=psutil).memory() == (64, 48)
    psutil.memory = Memory(64, 65)  # seen in containers
    assert Metrics(psutil=psutil).memory() == (64, 64)


@pytest.mark.parametrize("error", [FakePsutil.Error(), OSError("no /proc"), ValueError("empty")])
def test_what_psutil_cannot_learn_is_none_and_said_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    psutil = FakePsutil()
    psutil.error = error
    metrics = Metrics(psutil=psutil)
    for _ in range(3):
        assert metrics.cpu_load() is None
        assert metrics.memory() == (None, None)
    assert len(caplog.records) == 2
    psutil.error = None
    assert metrics.memory() == (64, 48)


def test_the_real_machine_is_plausible() -> None:
    psutil = pytest.importorskip("psutil")
    now = iter(range(1_000_000_000))
    metrics = Metrics(clock=lambda: next(now))
    load = None
    while load is None:  # until the counters have moved, by what this loop does if by nothing else
        load = metrics.cpu_load()
    assert 0 <= load <= 1
    total, free = metrics.memory()
    assert total == psutil.virtual_memory().total
    assert free is not None
    assert 0 < free < total


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtra) as caught:
        MachineSensors(machine="m", ollama="")
    assert "pip install 'aiosollol[agent]'" in str(caught.value)


# ---- GPUs

NvmlMemory = namedtuple("NvmlMemory", "total free used")
NvmlRates = namedtuple("NvmlRates", "gpu memory")


class FakeNvml:
    """NVML over `count` GPUs. A function named in `fails` raises what stands there."""

    class NVMLError(Exception):
        pass

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.fails: dict[str, Exception] = {}
        self.lost: set[int] = set()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(type(self), name.removeprefix("nvml"))

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.fails:
                raise self.fails[name]
            return function(self, *arguments)

        return call

    def Init(self) -> None: ...

    def Shutdown(self) -> None: ...

    def DeviceGetCount(self) -> int:
        return self.count

    def DeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.lost:
            raise self.NVMLError("GPU is lost")
        return index

    def DeviceGetName(self, handle: int) -> str:
        return f"NVIDIA {handle}"

    def DeviceGetMemoryInfo(self, handle: int) -> NvmlMemory:
        return NvmlMemory(24 * GIB, (20 - handle) * GIB, (4 + handle) * GIB)

    def DeviceGetUtilizationRates(self, handle: int) -> NvmlRates:
        return NvmlRates(25 * handle, 0)


FIRST = Gpu("NVIDIA 0", 24 * GIB, 20 * GIB, 0.0)
SECOND = Gpu("NVIDIA 1", 24 * GIB, 19 * GIB, 0.25)


def test_two_gpus_are_read_and_nvml_is_opened_and_closed_once() -> None:
    nvml = FakeNvml()
    gpus = Gpus(nvml=nvml)
    assert nvml.calls == []
    assert gpus.read() == gpus.read() == (FIRST, SECOND)
    gpus.close()
    gpus.close()
    assert (nvml.calls.count("nvmlInit"), nvml.calls.count("nvmlShutdown")) == (1, 1)
    assert gpus.read() == ()


def test_the_fake_has_the_functions_of_the_real_one() -> None:
    pynvml = pytest.importorskip("pynvml")
    nvml = FakeNvml(1)
    gpus = Gpus(nvml=nvml)
    gpus.read()
    gpus.close()
    assert len(set(nvml.calls)) == 7
    assert all(callable(getattr(pynvml, name)) for name in nvml.calls)
    assert issubclass(pynvml.NVMLError, Exception)


@pytest.mark.parametrize("kind", [FakeNvml.NVMLError, UnicodeDecodeError])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("nvmlDeviceGetCount", ()),
        ("nvmlDeviceGetHandleByIndex", ()),
        (
            "nvmlDeviceGetName",
            (FIRST._replace(name="NVIDIA GPU"), SECOND._replace(name="NVIDIA GPU")),
        ),
        (
            "nvmlDeviceGetMemoryInfo",  # as where the GPU shares the memory of the machine
            (Gpu("NVIDIA 0", utilisation=0.0), Gpu("NVIDIA 1", utilisation=0.25)),
        ),
        (
            "nvmlDeviceGetUtilizationRates",
            (FIRST._replace(utilisation=None), SECOND._replace(utilisation=None)),
        ),
        ("nvmlShutdown", (FIRST, SECOND)),
    ],
)
def test_a_call_that_fails_costs_only_what_it_tells(
    function: str,
    kind: type[Exception],
    expected: tuple[Gpu, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvml = FakeNvml()
    is_words = kind is UnicodeDecodeError
    nvml.fails[function] = kind("utf-8", b"\xff", 0, 1, "no") if is_words else kind("Unknown Error")
    gpus = Gpus(nvml=nvml)
    assert [gpus.read() for _ in range(3)] == [expected] * 3
    gpus.close()
    (record,) = caplog.records  # once, however often it fails
    assert function in record.getMessage()
    if function != "nvmlShutdown":
        nvml.fails.clear()
        assert Gpus(nvml=nvml).read() == (FIRST, SECOND)


def test_a_gpu_that_is_lost_is_left_out_until_it_is_back() -> None:
    nvml = FakeNvml()
    gpus = Gpus(nvml=nvml)
    nvml.lost = {0}
    assert gpus.read() == (SECOND,)
    nvml.lost = set()
    assert gpus.read() == (FIRST, SECOND)


def test_without_a_driver_there_are_no_gpus_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    nvml = FakeNvml()
    nvml.fails["nvmlInit"] = FakeNvml.NVMLError("NVML Shared Library Not Found")
    gpus = Gpus(nvml=nvml)
    assert gpus.read() == gpus.read() == ()
    gpus.close()
    assert nvml.calls == ["nvmlInit"]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "no NVIDIA driver, so no NVIDIA GPU is reported: NVML Shared Library Not Found")
    ]


def test_without_the_package_there_are_no_gpus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus = Gpus()
    assert gpus.read() == gpus.read() == ()
    gpus.close()
    assert [record.getMessage() for record in caplog.records] == [
        "nvidia-ml-py is not installed, so NVIDIA GPUs are not reported"
    ]


def test_what_the_user_states_stands_in_where_nvml_says_nothing() -> None:
    stated = stated_gpu("AMD Radeon RX 7900 XTX", 24)
    assert stated == Gpu("AMD Radeon RX 7900 XTX", 24 * GIB)
    none, mute, speaking = FakeNvml(0), FakeNvml(1), FakeNvml(1)
    mute.fails["nvmlDeviceGetMemoryInfo"] = FakeNvml.NVMLError("Not Supported")
    assert Gpus(stated, nvml=none).read() == (stated,)
    assert Gpus(stated, nvml=mute).read() == (stated,)
    assert Gpus(stated, nvml=speaking).read() == (FIRST,)


@pytest.mark.parametrize(
    ("name", "vram_gb", "expected"),
    [("", None, None), ("x", None, Gpu("x")), ("", 0.5, Gpu("GPU", GIB // 2))],
)
def test_a_stated_gpu(name: str, vram_gb: float | None, expected: Gpu | None) -> None:
    assert stated_gpu(name, vram_gb) == expected


@pytest.mark.parametrize("vram_gb", [0, -1, float("nan"), float("inf")])
def test_memory_that_cannot_be_is_refused(vram_gb: float) -> None:
    with pytest.raises(InvalidInput, match="vram_gb must be a number of GiB above 0"):
        stated_gpu("x", vram_gb)


def test_the_sensors_make_one_report_of_it() -> None:
    nvml = FakeNvml()
    sensors = MachineSensors(machine="m", ollama="http://x:1", psutil=FakePsutil(), nvml=nvml)
    assert sensors.read() == AgentReport(
        "m", "http://x:1", __version__, None, 64, 48, (FIRST, SECOND)
    )
    sensors.close()
    assert nvml.calls[-1] == "nvmlShutdown"


# ---- readings


class FakeSensors:
    """Tells REPORT, or what is in `reports` one after another; may hang, may raise."""

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
async def test_sensors_that_hang_hold_up_nobody_and_one_thread() -> None:
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
async def test_one_who_leaves_takes_the_reading_from_nobody() -> None:
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


# ---- over HTTP


@asynccontextmanager
async def served(sensors: Any, **options: Any) -> AsyncIterator[str]:
    """`serve` at work, by its URL; cancelled at the end, after which no task of it is left."""
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


# ---- beginning and end


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


# ---- news


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
