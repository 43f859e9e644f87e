"""Models being loaded: one request per node and model, which runs to its end, whoever leaves.

A load belongs to the first requester: when that one disconnects, the server throws the load away
(see docs/ollama.md). So it is a request of its own, without anything to compute, in a task of the
pool and not of a caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio

from aiosollol.core.node import full_name
from aiosollol.errors import NodeError, NodeTimeout, PoolClosed

LOAD_SECONDS = 300.0
"""What Ollama itself allows a load to take (OLLAMA_LOAD_TIMEOUT)."""

Spawn = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs a coroutine as a task of the pool, under a name."""


class _Load:
    """A load under way; when it is `done`, `error` says whether it failed."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: NodeError | PoolClosed | None = None


class Loads:
    """The loads under way, by node and model. spawn: runs the task of one."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._loads: dict[tuple[str, str], _Load] = {}

    async def ensure(
        self, node: str, model: str, send: Callable[[], Awaitable[None]], seconds: float
    ) -> None:
        """Return when `node` has loaded `model`: by `send`, or by what is under way already.

        `send` goes on when the caller leaves, or gives up after `seconds`. Raises its NodeError,
        NodeTimeout, or PoolClosed.
        """
        key = (node, full_name(model))
        load = self._loads.get(key)
        if load is None:
            self._loads[key] = load = _Load()
            self._spawn(self._carry(key, load, send), f"load {model} on {node}")
        with anyio.move_on_after(seconds) as limit:
            await load.done.wait()
        if limit.cancelled_caught:
            raise NodeTimeout(node, f"was still loading {model} after {seconds:g} s")
        if load.error is not None:
            raise load.error

    async def _carry(
        self, key: tuple[str, str], load: _Load, send: Callable[[], Awaitable[None]]
    ) -> None:
        load.error = PoolClosed("the pool was closed while a model was loaded")
        try:
            await send()
            load.error = None
        except NodeError as error:
            load.error = error
        finally:
            del self._loads[key]
            load.done.set()
