"""The sensors of a machine: its CPU, its memory and its GPUs, read through fakes."""

from __future__ import annotations

import logging
import sys
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest

from aiosollol import __version__
from aiosollol._install import install_command
from aiosollol.agent import (
    MachineSensors,
    stated_gpu,
)
from aiosollol.agent.sensors import CpuLoad, Gpus, Metrics
from aiosollol.errors import InvalidInput, MissingExtra
from aiosollol.wire.agent import AgentReport, Gpu

GIB = 2**30


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
    assert install_command("agent") in str(caught.value)


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
