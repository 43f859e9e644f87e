"""Models being loaded: one request per node and model, which runs to its end, whoever leaves.

A load belongs to the first requester: when that one disconnects, the server throws the load away
(see docs/ollama.md). So it is a request of its own, without anything to compute, in a task of the
pool and not of a caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable
from copy import copy
from typing import Any

import anyio

from aiosollol.errors import NodeTimeout, PoolClosed, SollolError

LOAD_SECONDS = 300.0
"""What Ollama itself allows a load to take (OLLAMA_LOAD_TIMEOUT)."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs a coroutine as a task of the pool, under a name."""


class Load:
    """A model on its way into the memory of a node, or there, or not."""

    def __init__(self, node: str, model: str, on_end: Callable[[], None]) -> None:
        self.node = node
        self.model = model
        self._on_end = on_end
        self._done = anyio.Event()
        self._error: Exception | None = None

    async def wait(self, seconds: float) -> None:
        """Return when it is there. Raises the load's NodeError, NodeTimeout, or PoolClosed.

        seconds: how long to wait for that; the load goes on when they are over.
        """
        with anyio.move_on_after(seconds):
            await self._done.wait()
        if not self._done.is_set():
            raise NodeTimeout(self.node, f"was still loading {self.model} after {seconds:g} s")
        if isinstance(self._error, SollolError):
            # A copy for each who waited: an exception that many tasks raise gathers all their
            # tracebacks, and keeps what is in their frames alive.
            raise copy(self._error) from self._error
        if self._error is not None:
            raise self._error

    def end(self, error: Exception | None) -> None:
        """It is over. Only the first call counts."""
        if not self._done.is_set():
            self._error = error
            self._on_end()
            self._done.set()


class ModelLoader:
    """The loads under way. spawn: runs the task of one."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._loads: dict[Hashable, Load] = {}
        self._is_closed = False

    def find(self, key: Hashable) -> Load | None:
        """What was started with `key`, if it is under way."""
        return self._loads.get(key)

    def start(self, key: Hashable, load: Load, send: Callable[[], Awaitable[None]]) -> None:
        """Carry out `load` by `send`, whoever waits for it or leaves."""
        if self._is_closed:
            load.end(_closed())
            return
        self._loads[key] = load
        self._spawn(self._carry(key, load, send), f"load {load.model} on {load.node}")

    def close(self) -> None:
        """Let whoever waits raise PoolClosed: their tasks may be cancelled before they began."""
        self._is_closed = True
        for load in list(self._loads.values()):
            load.end(_closed())
        self._loads.clear()

    async def _carry(self, key: Hashable, load: Load, send: Callable[[], Awaitable[None]]) -> None:
        error: Exception | None = _closed()  # unless it says otherwise, it was cancelled
        try:
            await send()
            error = None
        except Exception as failure:  # whatever it is, it is for those who wait
            error = failure
        finally:
            self._loads.pop(key, None)
            load.end(error)


def _closed() -> PoolClosed:
    return PoolClosed("the pool was closed while a model was loaded")
