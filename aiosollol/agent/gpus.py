"""The GPUs of this machine: those of NVIDIA by NVML, others as the user states them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from aiosollol.errors import InvalidInput
from aiosollol.wire.agent import Gpu

_log = logging.getLogger(__name__)
_GIB = 2**30


def stated_gpu(name: str = "", vram_gb: float | None = None) -> Gpu | None:
    """A GPU by what the user says of it, or None where nothing was said.

    vram_gb: its memory in GiB. How much of it is free, nobody says. Raises InvalidInput where that
    is not a number above zero.
    """
    if vram_gb is None:
        return Gpu(name) if name else None
    if not 0 < vram_gb < float("inf"):
        raise InvalidInput(f"vram_gb must be a number of GiB above 0, not {vram_gb!r}")
    return Gpu(name or "GPU", round(vram_gb * _GIB))


class Gpus:
    """The GPUs of this machine, by `read`, from one thread at a time.

    stated: stands in where NVML tells the memory of no GPU. nvml: for tests, in place of `pynvml`.

    NVML is opened by the first `read`: without persistence mode that takes a second or more for
    each GPU. Nothing that it does is raised; what it refuses is None, and said once in the log.
    """

    def __init__(self, stated: Gpu | None = None, *, nvml: Any = None) -> None:
        self._stated = (stated,) if stated is not None else ()
        self._nvml = nvml
        self._is_open: bool | None = None  # None: not tried yet
        self._said: set[str] = set()

    def read(self) -> tuple[Gpu, ...]:
        """Every GPU, as it is now."""
        found = self._read_nvml()
        if self._stated and not any(gpu.memory_total for gpu in found):
            return self._stated
        return found

    def close(self) -> None:
        """Let NVML go. Idempotent; nothing can be read afterwards."""
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
        """What NVML's function `name` returns; None where it fails."""
        function: Callable[..., Any] = getattr(self._nvml, name)
        try:
            return function(*arguments)
        except (self._nvml.NVMLError, ValueError) as error:  # ValueError: a name that is not UTF-8
            said = f"{name}: {error}"
            if said not in self._said:
                self._said.add(said)
                _log.warning("NVML fails, so a part is not reported: %s", said)
            return None
