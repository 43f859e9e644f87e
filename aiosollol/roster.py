"""Which nodes are fit for a model right now."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from aiosollol.errors import ModelNotFound, NoNodeAvailable, PoolClosed
from aiosollol.registry import Node, Registry

PATIENCE_SECONDS = 0.2
"""How long a new pool waits for its other nodes once the first has answered."""

_LOOK_AGAIN_SECONDS = 1.0
_MAX_NAMES = 256  # of models: callers choose them, so not every typo must be kept


class Roster:
    """Finds the nodes fit for a model, and waits for them if need be.

    probe: asks a node, by name, what it has; it never raises.
    """

    def __init__(
        self, registry: Registry, probe: Callable[[str], Coroutine[Any, Any, None]]
    ) -> None:
        self._registry = registry
        self._probe = probe
        self._ready: dict[str, tuple[int, list[Node]]] = {}
        self._patience_until: float | None = None
        self._sought_at: dict[str, float] = {}
        self._probing: anyio.Event | None = None
        self._rounds = 0
        self.is_closed = False

    def close(self) -> None:
        """Let whoever waits for a node raise PoolClosed."""
        self.is_closed = True
        self._registry.wake()

    def ready(self, model: str) -> list[Node]:
        """The nodes that are known to be up and to have `model`, perhaps none."""
        version, nodes = self._ready.get(model, (-1, []))
        if version != self._registry.version:
            nodes = [
                node
                for node in self._registry
                if not node.state.is_down and node.state.has_model(model)
            ]
            if len(self._ready) > _MAX_NAMES:
                self._ready.clear()
            self._ready[model] = (self._registry.version, nodes)
        return nodes

    async def wait_ready(self, model: str, *, patient: bool = False) -> list[Node]:
        """The nodes that are up and have `model`, at least one.

        Waits until one has answered; `patient` also waits a moment for the others of a pool that
        was just started. Raises PoolClosed, ModelNotFound or NoNodeAvailable.
        """
        registry = self._registry
        if self._patience_until is None:
            self._patience_until = registry.clock() + PATIENCE_SECONDS
        while True:
            if self.is_closed:
                raise PoolClosed("the pool was closed")
            version = registry.version
            nodes = self.ready(model)
            is_complete = not registry.is_searching and all(node.is_known for node in registry)
            patience = self._patience_until - registry.clock()
            if nodes and (is_complete or not patient or patience <= 0):
                return nodes
            if not nodes and is_complete:
                return await self._look_again(model)
            with anyio.move_on_after(patience if nodes else None):
                await registry.wait_changed(version)

    async def _look_again(self, model: str) -> list[Node]:
        """Ask every node once more: `model` may have been pulled, or a node may be back."""
        sought_at = self._sought_at.get(model, -math.inf)
        # Whoever comes while the nodes are being asked waits for what they say.
        if self._probing is not None or self._registry.clock() - sought_at > _LOOK_AGAIN_SECONDS:
            await self.probe_all()
            if len(self._sought_at) > _MAX_NAMES:
                self._sought_at.clear()
            self._sought_at[model] = self._registry.clock()
        nodes = self.ready(model)
        if not nodes:
            raise self._nobody(model)
        return nodes

    async def probe_all(self) -> None:
        """Ask every node what it has. Callers at the same time share one round."""
        rounds = self._rounds
        while self._probing is not None:
            await self._probing.wait()
            if self._rounds > rounds:
                return  # otherwise whoever asked was cancelled, and we ask ourselves
        self._probing = done = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                for node in self._registry:
                    group.start_soon(self._probe, node.name)
            self._rounds += 1
        finally:
            self._probing = None
            done.set()

    def _nobody(self, model: str) -> ModelNotFound | NoNodeAvailable:
        states = self._registry.view.nodes
        silent = {
            name: f"{state.error} ({state.spec.url})"
            for name, state in states.items()
            if state.is_down
        }
        having = {
            name: sorted(state.models)
            for name, state in states.items()
            if state.models is not None and not state.is_down
        }
        if having:
            return ModelNotFound(model, having, silent)
        if not states:
            return NoNodeAvailable(
                "no Ollama server was found: name one, as in OllamaPool(['10.0.0.2']), or start "
                "one that others can reach with: OLLAMA_HOST=0.0.0.0 ollama serve",
                {},
            )
        return NoNodeAvailable("no node answers; is Ollama running there?", silent)
