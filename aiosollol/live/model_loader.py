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

from aiosollol.core.model_names import full_name
from aiosollol.errors import NodeTimeout, PoolClosed, SollolError

LOAD_SECONDS = 300.0
"""Ollama's own limit for a load (OLLAMA_LOAD_TIMEOUT)."""
HUNG_LOAD_SECONDS = 60.0
"""The limit once a load on any node has shown how long they take, unless they take longer."""
_LOOK_SECONDS = 5.0
"""Seconds between looks at whether a load hangs. No load does before that."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs a coroutine as a task of the pool, under a name."""


class Load:
    """One load of a model on a node, in progress or finished.

    on_end: called once when it ends, with any outcome.
    scope: bounds the request. Its deadline moves when it is known how long such a load takes.
    """

    def __init__(self, node: str, model: str, on_end: Callable[[], None]) -> None:
        self.node = node
        self.model = model
        self.scope = anyio.CancelScope()
        self._began = anyio.current_time()
        self._on_end = on_end
        self._done = anyio.Event()
        self._error: Exception | None = None

    def bound(self, seconds: float) -> None:
        """End it if it hangs. seconds: after which such loads do; infinity if that is unknown."""
        until = anyio.current_time() + max(HUNG_LOAD_SECONDS, seconds)
        self.scope.deadline = min(self.scope.deadline, until)

    async def wait(self, seconds: float, hung_after: Callable[[], float] | None = None) -> None:
        """Return when the model is loaded. Raises the load's NodeError, NodeTimeout, or PoolClosed.

        seconds: how long to wait; the load goes on afterwards.
        hung_after: how many seconds after its begin it is no longer waited for; asked repeatedly.
        """
        began = anyio.current_time()
        while not self._done.is_set():
            now, until = anyio.current_time(), began + seconds
            if hung_after is not None:
                until = min(until, self._began + max(_LOOK_SECONDS, hung_after()))
            if now >= until:
                waited = now - began
                raise NodeTimeout(self.node, f"was still loading {self.model} after {waited:g} s")
            look_at = until if hung_after is None else min(until, now + _LOOK_SECONDS)
            with anyio.CancelScope(deadline=look_at):
                await self._done.wait()
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

    def of(self, model: str) -> list[Load]:
        """The loads of `model` in progress."""
        name = full_name(model)
        return [load for load in self._loads.values() if full_name(load.model) == name]

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
