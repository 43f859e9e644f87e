"""Which nodes are fit for a model right now."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import anyio

from aiosollol.core.agreement import DigestGroup, comparable, names_of
from aiosollol.core.node import full_name
from aiosollol.errors import ModelNotFound, NoNodeAvailable, PoolClosed
from aiosollol.nodes import Node
from aiosollol.registry import Registry

log = logging.getLogger("aiosollol")

PATIENCE_SECONDS = 0.2
"""How long a new pool waits for its other nodes once the first has answered."""

_LOOK_AGAIN_SECONDS = 1.0
_MAX_NAMES = 256  # of models: callers choose them, so not every typo must be kept


class Roster:
    """Finds the nodes fit for a model, and waits for them if need be.

    probe: asks a node, by name, what it has; it never raises. require_digest: model -> the digest
    that nodes must have of it.
    """

    def __init__(
        self,
        registry: Registry,
        probe: Callable[[str], Coroutine[Any, Any, None]],
        require_digest: Mapping[str, str] | None = None,
    ) -> None:
        self._registry = registry
        self._probe = probe
        self._ready: dict[str, tuple[int, list[Node]]] = {}
        self._required = {full_name(m): digest for m, digest in (require_digest or {}).items()}
        self._chosen: dict[str, str] = {}
        self._warned: dict[str, frozenset[str]] = {}
        self._comparable: dict[str, tuple[int, Sequence[Node], Sequence[Node]]] = {}
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
                if not node.state.is_down and node.state.has_model(model) and not node.is_draining
            ]
            if len(self._ready) > _MAX_NAMES:
                self._ready.clear()
            self._ready[model] = (self._registry.version, nodes)
        return nodes

    def comparable(self, model: str, nodes: Sequence[Node]) -> Sequence[Node]:
        """Those of `nodes` whose vectors of `model` may stand in one index.

        They have the digest that the user requires, or the one that was used before, or else the
        one of the nodes that are fastest together. Who is left out is named in a warning, once.
        Raises NoNodeAvailable if no node has the required digest.
        """
        name = full_name(model)
        version, known, fit = self._comparable.get(name, (-1, nodes, nodes))
        if version == self._registry.version and known is nodes:
            return fit
        trusted = [node for node in nodes if name not in node.distrusted]
        digests = {node.name: node.digest(model) for node in trusted}
        speeds = {node.name: 1.0 / node.cost(model).seconds_per_token for node in trusted}
        required = self._required.get(name)
        chosen = required or self._chosen.get(name)
        group = comparable(digests, speeds, chosen)
        if not group.nodes and required is None:
            group = comparable(digests, speeds)
        if required is not None and not group.nodes:
            raise NoNodeAvailable(
                f"no node has {model!r} with the required digest {required}",
                {node: f"has digest {digest or 'unknown'}" for node, digest in digests.items()},
            )
        self._chosen[name] = group.digest
        self._warn(name, group)
        fit = (
            nodes
            if len(group.nodes) == len(nodes)
            else [node for node in trusted if node.name in group.nodes]
        )
        self._comparable[name] = (self._registry.version, nodes, fit)
        return fit

    def digest_in_use(self, model: str) -> str | None:
        """The digest of the nodes that `comparable` gave last; None if it was never asked."""
        return self._chosen.get(full_name(model))

    def _warn(self, name: str, group: DigestGroup) -> None:
        names = frozenset(group.excluded)
        if names and self._warned.get(name) != names:
            log.warning(
                "vectors of %s are not comparable between all nodes: digest %s is used; left out: "
                "%s (pull the same version on every node)",
                name,
                group.digest[:12] or "unknown",
                names_of(group.excluded),
            )
        self._warned[name] = names

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
