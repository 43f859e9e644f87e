"""Model loads: one request per node and model, which runs to its end even if all callers leave.

Ollama ties a load to the first request: if that one disconnects, the server abandons the load (see
docs/ollama.md). So a load is a request of its own that computes nothing, in a task of the pool
rather than of a caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable
from copy import copy
from typing import Any

import anyio

from aiosollol.errors import NodeTimeout, PoolClosed, SollolError

LOAD_SECONDS = 300.0
"""Ollama's own limit for a load (OLLAMA_LOAD_TIMEOUT)."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs a coroutine as a task of the pool, under a name."""


class Load:
    """One load of a model on a node, in progress or finished.

    on_end: called once when it ends, with any outcome.
    """

    def __init__(self, node: str, model: str, on_end: Callable[[], None]) -> None:
        self.node = node
        self.model = model
        self._on_end = on_end
        self._done = anyio.Event()
        self._error: Exception | None = None

    async def wait(self, seconds: float) -> None:
        """Return when the model is loaded. Raises the load's NodeError, NodeTimeout, or PoolClosed.

        seconds: how long to wait; the load goes on afterwards.
        """
        with anyio.move_on_after(seconds):
            await self._done.wait()
        if not self._done.is_set():
            raise NodeTimeout(self.node, f"was still loading {self.model} after {seconds:g} s")
        if isinstance(self._error, SollolError):
            # A copy for each waiter: an exception raised by many tasks collects all their
            # tracebacks, and keeps their frames alive.
            raise copy(self._error) from self._error
        if self._error is not None:
            raise self._error

    def end(self, error: Exception | None) -> None:
        """End the load. error: why it failed, if it did. Only the first call counts."""
        if not self._done.is_set():
            self._error = error
            self._on_end()
            self._done.set()


class ModelLoader:
    """The loads in progress. spawn: runs a task of the pool."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._loads: dict[Hashable, Load] = {}
        self._is_closed = False

    def find(self, key: Hashable) -> Load | None:
        """The load started with `key`; None if none is in progress."""
        return self._loads.get(key)

    def start(self, key: Hashable, load: Load, send: Callable[[], Awaitable[None]]) -> None:
        """Carry out `load` by calling `send`, whether or not any request waits for it."""
        if self._is_closed:
            load.end(_closed())
            return
        self._loads[key] = load
        self._spawn(self._carry(key, load, send), f"load {load.model} on {load.node}")

    def close(self) -> None:
        """Raise PoolClosed in all waiters: the tasks may be cancelled before they start."""
        self._is_closed = True
        for load in list(self._loads.values()):
            load.end(_closed())
        self._loads.clear()

    async def _carry(self, key: Hashable, load: Load, send: Callable[[], Awaitable[None]]) -> None:
        error: Exception | None = _closed()  # stays if the task is cancelled
        try:
            await send()
            error = None
        except Exception as failure:  # raised to the waiters
            error = failure
        finally:
            self._loads.pop(key, None)
            load.end(error)


def _closed() -> PoolClosed:
    return PoolClosed("the pool was closed while a model was loaded")
