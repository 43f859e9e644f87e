"""Which models a fake node has in memory, and what it takes to get one there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from aiosollol.testing.slots import Slots
from aiosollol.wire import answers
from aiosollol.wire.asked import Refusal

# Options whose change makes Ollama load a model again.
_LOAD_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
_KEEP_ALIVE = 300.0  # seconds; Ollama's default


@dataclass(frozen=True, slots=True)
class _Loaded:
    """How a model was loaded, and until when it stays (ns since 1970)."""

    options: tuple[Any, ...]
    until: int


class Memory:
    """The models in memory. One is loaded at a time; those already there do not wait for that."""

    def __init__(self) -> None:
        self._loaded: dict[str, _Loaded] = {}
        self._loading = Slots(1)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The name of each model in memory and the `timestamp` of when it is unloaded."""
        return ((name, answers.timestamp(it.until)) for name, it in self._loaded.items())

    async def load(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        seconds: float,
        keep_alive: float | None,
        max_queue: int,
    ) -> float:
        """Have a model in memory; the seconds that it took. Raises Refusal (503).

        The load belongs to whoever asked first: if they leave, it is thrown away, as in Ollama.
        """
        began = anyio.current_time()
        wanted = tuple(options.get(option) for option in _LOAD_OPTIONS)
        if self._is_cold(name, wanted):
            if self._loading.waiting >= max_queue:
                raise Refusal(503, answers.BUSY)
            await self._loading.acquire()
            try:
                if self._is_cold(name, wanted):  # whoever came before may have loaded it
                    self.unload(name)
                    await anyio.sleep(seconds)
                    self._note(name, wanted, keep_alive)
            finally:
                self._loading.release()
        self._note(name, wanted, keep_alive)
        return anyio.current_time() - began

    def unload(self, name: str) -> None:
        """Drop a model, if it is there."""
        self._loaded.pop(name, None)

    def _note(self, name: str, options: tuple[Any, ...], keep_alive: float | None) -> None:
        seconds = _KEEP_ALIVE if keep_alive is None else keep_alive
        until = time.time_ns() + int(min(seconds * 1e9, answers.FOR_EVER_NS))
        self._loaded[name] = _Loaded(options, until)

    def _is_cold(self, name: str, options: tuple[Any, ...]) -> bool:
        loaded = self._loaded.get(name)
        return loaded is None or loaded.options != options
