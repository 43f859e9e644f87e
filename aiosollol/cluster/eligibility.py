"""Eligibility: the nodes that can serve a model now."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import anyio

from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.agreement import DigestGroup, comparable, names_of
from aiosollol.core.model_names import full_name
from aiosollol.errors import ModelNotFound, NoNodeAvailable, PoolClosed

log = logging.getLogger("aiosollol")

PATIENCE_SECONDS = 0.2
"""How long a new pool waits for its other nodes after the first has answered."""

_LOOK_AGAIN_SECONDS = 1.0
_MAX_NAMES = 256  # of models: callers choose them, so the caches must be bounded


class Eligibility:
    """Finds the eligible nodes for a model, and waits for them if necessary.

    probe: probes a node, by name; never raises.
    require_digest: required digests by model.
    """

    def __init__(
        self,
        cluster: ClusterState,
        probe: Callable[[str], Coroutine[Any, Any, None]],
        require_digest: Mapping[str, str] | None = None,
    ) -> None:
        self._cluster = cluster
        self._probe = probe
        self._ready: dict[str, tuple[int, list[Node]]] = {}
        self._required = {full_name(m): digest for m, digest in (require_digest or {}).items()}
        self._chosen: dict[str, str] = {}
        self._warned: dict[str, set[tuple[str, str]]] = {}
        self._comparable: dict[str, tuple[int, Sequence[Node]]] = {}
        self._patience_until: float | None = None
        self._sought_at: dict[str, float] = {}
        self._probing: anyio.Event | None = None
        self._rounds = 0
        self._closed = anyio.Event()
        self.is_closed = False

    def close(self) -> None:
        """Make all callers that wait for a node raise PoolClosed."""
        self.is_closed = True
        self._closed.set()
        self._cluster.wake()

    def ready(self, model: str) -> list[Node]:
        """The nodes known to be up and to have `model`; may be empty."""
        version, nodes = self._ready.get(model, (-1, []))
        if version != self._cluster.version:
            nodes = [
                node
                for node in self._cluster
                if not node.state.is_down and node.state.has_model(model) and not node.is_draining
            ]
            if len(self._ready) > _MAX_NAMES:
                self._ready.clear()
            self._ready[model] = (self._cluster.version, nodes)
        return nodes

    def comparable(self, model: str) -> Sequence[Node]:
        """The `ready` nodes whose vectors of `model` are comparable; may be empty.

        They have the digest that the user requires, else the one used before, else the one of the
        group with the highest total speed. A warning names each excluded node once. Raises
        NoNodeAvailable if there are ready nodes, but none with such vectors.
        """
        version, nodes = self._comparable.get(model, (-1, ()))
        if version != self._cluster.version:
            nodes = self._find_comparable(model, self.ready(model))
            if len(self._comparable) > _MAX_NAMES:
                self._comparable.clear()
            self._comparable[model] = (self._cluster.version, nodes)
        return nodes

    def _find_comparable(self, model: str, nodes: Sequence[Node]) -> Sequence[Node]:
        if not nodes:
            return nodes
        name = full_name(model)
        trusted = [node for node in nodes if name not in node.distrusted]
        digests = {node.name: node.digest(model) for node in trusted}
        speeds = {node.name: 1.0 / node.cost(model).seconds_per_token for node in trusted}
        required, before = self._required.get(name), self._chosen.get(name)
        group = comparable(digests, speeds, required or before or None)
        if not group.nodes and required is None:
            group = comparable(digests, speeds)
        if not group.nodes:
            raise self._none_comparable_error(model, nodes)
        if before and group.digest != before and required is None:
            log.warning(
                "no node is left with digest %s of %s: new vectors are made with digest %s and "
                "are not comparable with earlier ones (require_digest prevents this)",
                before[:12],
                name,
                group.digest[:12] or "unknown",
            )
        self._chosen[name] = group.digest
        self._warn(name, group)
        if len(group.nodes) == len(nodes):
            return nodes
        return [node for node in trusted if node.name in group.nodes]

    def _none_comparable_error(self, model: str, nodes: Sequence[Node]) -> NoNodeAvailable:
        name = full_name(model)
        required = self._required.get(name)
        reasons = {
            node.name: f"has digest {node.digest(model)[:12] or 'unknown'}"
            if name not in node.distrusted
            else "returns different vectors than the other nodes (verify compares again)"
            for node in nodes
        }
        if required is None:
            return NoNodeAvailable(f"no node is left with correct vectors of {model!r}", reasons)
        return NoNodeAvailable(
            f"no node has {model!r} with the required digest {required}", reasons
        )

    def require(self, model: str, digest: str) -> None:
        """Require this digest of `model` from now on, as if the user had set it."""
        name = full_name(model)
        if self._required.get(name) != digest:
            self._required[name] = digest
            self._comparable.clear()

    def is_undecided(self, model: str) -> bool:
        """Whether no digest of `model` has been chosen yet."""
        return model not in self._comparable and full_name(model) not in self._chosen

    def digest_in_use(self, model: str) -> str | None:
        """The digest of the nodes that `comparable` last returned; None if never called."""
        return self._chosen.get(full_name(model))

    def _warn(self, name: str, group: DigestGroup) -> None:
        # Once per node and digest, so that a flapping node does not repeat it.
        warned = self._warned.setdefault(name, set())
        excluded = set(group.excluded.items())
        if not excluded <= warned:
            log.warning(
                "vectors of %s are not comparable between all nodes: using digest %s; excluded: "
                "%s (pull the same version on every node)",
                name,
                group.digest[:12] or "unknown",
                names_of(group.excluded),
            )
            warned |= excluded

    async def pause(self, seconds: float) -> None:
        """Sleep. Raises PoolClosed as soon as the pool is closed."""
        with anyio.move_on_after(seconds):
            await self._closed.wait()
        if self.is_closed:
            raise PoolClosed("the pool was closed during this call")

    async def wait_ready(self, model: str, *, patient: bool = False) -> list[Node]:
        """The nodes that are up and have `model`, at least one.

        Waits until one has answered. patient: in a new pool, also wait `PATIENCE_SECONDS` for the
        others. Raises PoolClosed, ModelNotFound or NoNodeAvailable.
        """
        cluster = self._cluster
        if self._patience_until is None:
            self._patience_until = cluster.clock() + PATIENCE_SECONDS
        while True:
            if self.is_closed:
                raise PoolClosed("the pool was closed")
            version = cluster.version
            nodes = self.ready(model)
            is_complete = not cluster.is_searching and all(node.is_known for node in cluster)
            patience = self._patience_until - cluster.clock()
            if nodes and (is_complete or not patient or patience <= 0):
                return nodes
            if not nodes and is_complete:
                return await self._look_again(model)
            with anyio.move_on_after(patience if nodes else None):
                await cluster.wait_changed(version)

    async def _look_again(self, model: str) -> list[Node]:
        """Probe every node again: `model` may have been pulled, or a node may be back."""
        sought_at = self._sought_at.get(model, -math.inf)
        # Calls during a round of probes wait for its result.
        if self._probing is not None or self._cluster.clock() - sought_at > _LOOK_AGAIN_SECONDS:
            await self.probe_all()
            if len(self._sought_at) > _MAX_NAMES:
                self._sought_at.clear()
            self._sought_at[model] = self._cluster.clock()
        if self.is_closed:
            raise PoolClosed("the pool was closed")
        nodes = self.ready(model)
        if not nodes:
            raise self.no_node_error(model)
        return nodes

    async def probe_all(self) -> None:
        """Probe every node. Concurrent callers share one round."""
        rounds = self._rounds
        while self._probing is not None:
            await self._probing.wait()
            if self._rounds > rounds:
                return  # otherwise that round was cancelled, so start another
        self._probing = done = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                for node in self._cluster:
                    group.start_soon(self._look_at, node.name)
            self._rounds += 1
        finally:
            self._probing = None
            done.set()

    async def _look_at(self, name: str) -> None:
        # Before the task's first step the node may be removed, or the pool closed.
        if name in self._cluster and not self.is_closed:
            await self._probe(name)

    def conditions(self) -> dict[str, str]:
        """The condition of each node, by name, for people to read."""
        return {
            node.name: f"{node.state.error} ({node.spec.url})"
            if node.state.is_down
            else "is being drained"
            if node.is_draining
            else "is up"
            if node.is_known
            else "has not answered yet"
            for node in self._cluster
        }

    def no_node_error(self, model: str) -> ModelNotFound | NoNodeAvailable:
        """The error to raise if no node is `ready`."""
        drained = {
            node.name: "is being drained"
            for node in self._cluster
            if node.is_draining and node.has_model(model) and not node.is_down
        }
        if drained:
            return NoNodeAvailable(f"every node that has {model!r} is being drained", drained)
        states = self._cluster.view.nodes
        silent = {
            name: f"{state.error} ({state.spec.url})"
            for name, state in states.items()
            if state.is_down
        }
        having = {
            name: sorted(state.model_names)
            for name, state in states.items()
            if state.models is not None and not state.is_down
        }
        if having:
            return ModelNotFound(model, having, silent)
        if not states:
            return NoNodeAvailable(
                "no Ollama server was found: name one, as in OllamaPool(['10.0.0.2']), or start "
                "one that other machines can reach with: OLLAMA_HOST=0.0.0.0 ollama serve",
                {},
            )
        return NoNodeAvailable("no node answers; is Ollama running there?", silent)
