"""The load and the memory of this machine, from psutil, and its GPUs: `MachineSensors`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aiosollol import __version__
from aiosollol.agent.gpus import Gpus
from aiosollol.errors import MissingExtra
from aiosollol.wire.agent import AgentReport, Gpu

_log = logging.getLogger(__name__)

WINDOW_SECONDS = 2.0
"""The load is that of at least so long a time, as soon as there was so much."""

_LEAST_SECONDS = 0.1  # of less, one would see the ticks of the system's clock and nothing else


class CpuLoad:
    """The share of all cores that was busy of late, from the counters of the system.

    It is our own because `psutil.cpu_percent` compares with the last call of the same thread.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque()
        self._load: float | None = None

    def add(self, now: float, busy: float, total: float) -> float | None:
        """The load from 0 to 1 up to `now`, or None while that is not known.

        now: seconds; busy, total: seconds that all cores together have spent so far.
        """
        samples = self._samples
        # Compare with the newest that is old enough; those before it are not needed again.
        while len(samples) > 1 and now - samples[1][0] >= WINDOW_SECONDS:
            samples.popleft()
        if samples and now - samples[0][0] >= _LEAST_SECONDS:
            _, busy_then, total_then = samples[0]
            # The counters of virtual machines have been seen to stand still and to go back.
            if total > total_then:
                self._load = min(max((busy - busy_then) / (total - total_then), 0.0), 1.0)
        samples.append((now, busy, total))
        return self._load


class Metrics:
    """CPU load and memory of this machine, by `read`, which may be called from any thread.

    Raises MissingExtra without psutil. `psutil` is for tests: what to use in its place.
    """

    def __init__(self, *, psutil: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._psutil = psutil if psutil is not None else _psutil()
        self._clock = clock
        self._load = CpuLoad()
        self._failed: set[str] = set()
        self.cpu_load()  # from here on there is something to compare with

    def cpu_load(self) -> float | None:
        """The share of all cores, from 0 to 1, that was busy over the last seconds."""
        times = self._ask("cpu_times")
        if times is None:
            return None
        # As psutil counts: guests are in "user" already, and to wait for a disk is not to work.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        return self._load.add(self._clock(), busy, total)

    def memory(self) -> tuple[int | None, int | None]:
        """Bytes of main memory in all, and those that can be had without swapping."""
        memory = self._ask("virtual_memory")
        if memory is None:
            return None, None
        return memory.total, min(memory.available, memory.total)

    def _ask(self, name: str) -> Any:
        """What psutil's function `name` returns; None where this system does not tell."""
        try:
            return getattr(self._psutil, name)()
        # In containers without /proc psutil meets files that are not there, and empty ones.
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
                _log.warning("psutil.%s fails, so that is not reported: %s", name, error)
            return None


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise MissingExtra("the agent", "agent") from error
    return psutil


class MachineSensors:
    """The state of this machine, by `read`. Blocks, so it belongs into a thread.

    machine: its id. ollama: URL of the Ollama that the report is about. gpu: stands in where NVML
    tells of none. psutil, nvml: for tests, what to use in place of the packages.

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
        """The machine as it is now. What cannot be learned is None; nothing is raised."""
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
        """Let the GPUs go. Idempotent."""
        with self._lock:
            self._gpus.close()
