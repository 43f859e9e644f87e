"""Sensors for this machine's load and memory, read without blocking the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from aiosollol._version import __version__
from aiosollol.errors import InvalidInput, MissingExtra
from aiosollol.wire.agent import AgentReport, Gpu

_log = logging.getLogger(__name__)
_GIB = 2**30


def stated_gpu(name: str = "", vram_gb: float | None = None) -> Gpu | None:
    """A GPU described by the user, or None if nothing was given.

    vram_gb: its total memory in GiB; free memory stays unknown. Raises InvalidInput unless it is a
    number above zero.
    """
    if vram_gb is None:
        return Gpu(name) if name else None
    if not 0 < vram_gb < float("inf"):
        raise InvalidInput(f"vram_gb must be a number of GiB above 0, not {vram_gb!r}")
    return Gpu(name or "GPU", round(vram_gb * _GIB))


class Gpus:
    """The GPUs of this machine. Call `read` from one thread at a time.

    stated: used if NVML reports the memory of no GPU. nvml: replaces `pynvml`, for tests.

    NVML is opened by the first `read`, which takes a second or more for each GPU without
    persistence mode. NVML errors are not raised: missing values are None, logged once.
    """

    def __init__(self, stated: Gpu | None = None, *, nvml: Any = None) -> None:
        self._stated = (stated,) if stated is not None else ()
        self._nvml = nvml
        self._is_open: bool | None = None  # None: not tried yet
        self._said: set[str] = set()

    def read(self) -> tuple[Gpu, ...]:
        """The current state of every GPU."""
        found = self._read_nvml()
        if self._stated and not any(gpu.memory_total for gpu in found):
            return self._stated
        return found

    def close(self) -> None:
        """Close NVML. Idempotent; nothing can be read afterwards."""
        if self._is_open:
            self._ask("nvmlShutdown")
        self._is_open = False

    def _read_nvml(self) -> tuple[Gpu, ...]:
        if self._is_open is None:
            self._is_open = self._open()
        if not self._is_open:
            return ()
        count = self._ask("nvmlDeviceGetCount") or 0
        handles = (self._ask("nvmlDeviceGetHandleByIndex", index) for index in range(count))
        return tuple(self._gpu(handle) for handle in handles if handle is not None)

    def _gpu(self, handle: Any) -> Gpu:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        return Gpu(
            self._ask("nvmlDeviceGetName", handle) or "NVIDIA GPU",
            None if memory is None else memory.total,
            None if memory is None else min(memory.free, memory.total),
            None if rates is None else min(rates.gpu / 100, 1.0),  # NVML counts in percent
        )

    def _open(self) -> bool:
        if self._nvml is None:
            try:
                import pynvml
            except ImportError:
                _log.info("nvidia-ml-py is not installed, so NVIDIA GPUs are not reported")
                return False
            self._nvml = pynvml
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            _log.info("no NVIDIA driver, so no NVIDIA GPU is reported: %s", error)
            return False
        return True

    def _ask(self, name: str, *arguments: Any) -> Any:
        """The result of NVML's function `name`; None if it fails."""
        function: Callable[..., Any] = getattr(self._nvml, name)
        try:
            return function(*arguments)
        except (self._nvml.NVMLError, ValueError) as error:  # ValueError: a name that is not UTF-8
            said = f"{name}: {error}"
            if said not in self._said:
                self._said.add(said)
                _log.warning("an NVML call failed, so its value is not reported: %s", said)
            return None


WINDOW_SECONDS = 2.0
"""The load is averaged over at least this time, once that has passed."""

_LEAST_SECONDS = 0.1  # below that, only the ticks of the system's clock would show


class CpuLoad:
    """The recent CPU load of all cores, from the system's counters.

    Not `psutil.cpu_percent`, which compares with the last call of the same thread.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque()
        self._load: float | None = None

    def add(self, now: float, busy: float, total: float) -> float | None:
        """The load from 0 to 1 up to `now`, or None while unknown.

        now: seconds. busy, total: seconds that all cores together have spent so far.
        """
        samples = self._samples
        # Compare with the newest sample that is old enough, and drop older ones.
        while len(samples) > 1 and now - samples[1][0] >= WINDOW_SECONDS:
            samples.popleft()
        if samples and now - samples[0][0] >= _LEAST_SECONDS:
            _, busy_then, total_then = samples[0]
            # On virtual machines, counters sometimes stand still or go back.
            if total > total_then:
                self._load = min(max((busy - busy_then) / (total - total_then), 0.0), 1.0)
        samples.append((now, busy, total))
        return self._load


class Metrics:
    """CPU load and memory of this machine. May be used from any thread.

    psutil: replaces the package, for tests. Raises MissingExtra without psutil.
    """

    def __init__(self, *, psutil: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._psutil = psutil if psutil is not None else _psutil()
        self._clock = clock
        self._load = CpuLoad()
        self._failed: set[str] = set()
        self.cpu_load()  # the first sample to compare with

    def cpu_load(self) -> float | None:
        """The load of all cores over the last seconds, from 0 to 1."""
        times = self._ask("cpu_times")
        if times is None:
            return None
        # As in psutil: guests are included in "user", and waiting for a disk is idle time.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        return self._load.add(self._clock(), busy, total)

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes of main memory: total, and available without swapping."""
        memory = self._ask("virtual_memory")
        if memory is None:
            return None, None
        return memory.total, min(memory.available, memory.total)

    def _ask(self, name: str) -> Any:
        """The result of psutil's function `name`; None if this system does not support it."""
        try:
            return getattr(self._psutil, name)()
        # In containers without /proc, psutil finds files missing or empty.
        except (
            self._psutil.Error,
            OSError,
            ArithmeticError,
            LookupError,
            RuntimeError,
            ValueError,
        ) as error:
            if name not in self._failed:
                self._failed.add(name)
                _log.warning("psutil.%s failed, so its value is not reported: %s", name, error)
            return None


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise MissingExtra("the agent", "agent") from error
    return psutil


class MachineSensors:
    """Reads the state of this machine. Blocking: call `read` in a thread.

    machine: its id.
    ollama: URL of the Ollama that the report is about.
    gpu: used if NVML reports none.
    psutil, nvml: replace the packages, for tests.

    Raises MissingExtra without the extra "agent".
    """

    def __init__(
        self,
        *,
        machine: str,
        ollama: str,
        gpu: Gpu | None = None,
        psutil: Any = None,
        nvml: Any = None,
    ) -> None:
        self._machine = machine
        self._ollama = ollama
        self._metrics = Metrics(psutil=psutil)
        self._gpus = Gpus(gpu, nvml=nvml)
        self._lock = threading.Lock()

    def read(self) -> AgentReport:
        """The current state of the machine. Unknown values are None; nothing is raised."""
        with self._lock:
            return AgentReport(
                self._machine,
                self._ollama,
                __version__,
                self._metrics.cpu_load(),
                *self._metrics.memory(),
                self._gpus.read(),
            )

    def close(self) -> None:
        """Close NVML. Idempotent."""
        with self._lock:
            self._gpus.close()


T = TypeVar("T")

FRESH_SECONDS = 1.0
READ_SECONDS = 1.0
"""A GPU that has fallen off its bus can block NVML for minutes. Requests fail before that, and
before a pool gives up after two seconds."""


class Sensors(Protocol):
    """The source of readings: `MachineSensors`, or a fake. Both methods may block."""

    def read(self) -> AgentReport: ...

    def close(self) -> None: ...


class Readings:
    """The latest reading of `sensors`, taken at most once a second, in a thread.

    Concurrent callers share one thread, and a reading that hangs is not started again.

    timeout: seconds that a caller waits at most.
    clock: in seconds, for tests; by default that of the event loop.
    """

    def __init__(
        self,
        sensors: Sensors,
        *,
        timeout: float = READ_SECONDS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._sensors = sensors
        self._timeout = timeout
        self._clock = clock
        self._newest: AgentReport | None = None
        self._taken = 0.0
        self._running: asyncio.Future[AgentReport] | None = None

    async def latest(self, timeout: float | None = None) -> AgentReport:
        """A reading that began less than a second ago, or one taken now.

        Raises TimeoutError if that takes more than `timeout` seconds, and errors of the sensors.
        """
        now = (self._clock or asyncio.get_running_loop().time)()
        if self._newest is not None and now - self._taken < FRESH_SECONDS:
            return self._newest
        if self._running is None:
            self._running = in_thread(self._sensors.read)
            self._running.add_done_callback(lambda done: self._keep(done, now))
        # wait, unlike wait_for, does not cancel the reading, which other callers may wait for.
        patience = self._timeout if timeout is None else timeout
        done, _ = await asyncio.wait([self._running], timeout=patience)
        if not done:
            raise TimeoutError("the sensors of this machine do not answer in time")
        return done.pop().result()

    async def aclose(self) -> None:
        """Close the sensors, unless they hang: then the process ends without closing them."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=self._timeout)
        if self._running is None:
            await asyncio.wait([in_thread(self._sensors.close)], timeout=self._timeout)

    def _keep(self, done: asyncio.Future[AgentReport], began: float) -> None:
        self._running = None
        if not done.cancelled() and done.exception() is None:
            self._newest, self._taken = done.result(), began


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """The result of `function`, from a thread that does not keep the process alive.

    The process would wait for threads of `asyncio.to_thread` before it ends, however long.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="aiosollol-agent", daemon=True).start()
    return future
