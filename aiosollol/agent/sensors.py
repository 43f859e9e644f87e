"""What this machine says of itself, put together from its sensors."""

from __future__ import annotations

import threading
from typing import Any

from aiosollol import __version__
from aiosollol.agent.gpus import Gpus
from aiosollol.agent.metrics import Metrics
from aiosollol.wire.agent import AgentReport, Gpu


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
