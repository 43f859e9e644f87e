"""`BackgroundTasks`: a pool's connections, and the tasks that watch and find nodes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio

from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.cluster.node import Node
from aiosollol.core.node import NodeSpec
from aiosollol.errors import PoolClosed, SollolError
from aiosollol.net.primitives import FutureGate, TaskScope
from aiosollol.pool.registry import NodeRegistry
from aiosollol.ports import Transport

# anyio imports its asyncio backend on first use, which would add 17 ms to the first request. It has
# no public name; if it cannot be imported here, only that time is lost.
with contextlib.suppress(ImportError):
    importlib.import_module("anyio._backends._asyncio")

log = logging.getLogger("aiosollol")

CLOSE_SECONDS = 5.0
SEARCH_INTERVAL = 30.0
"""Seconds that a pool without nodes waits before it searches again."""


class BackgroundTasks:
    """The connections to the nodes of a registry, and the tasks that watch and find nodes.

    transport_factory: makes the transport to a node.
    search: options of `discovery.discover`, to search the network for nodes; None does not search.
    follows: whether to keep watching the network after that, for nodes that come and go.
    metrics_interval, check_interval: see `HealthMonitor`.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        transport_factory: Callable[[NodeSpec], Transport],
        *,
        search: Mapping[str, Any] | None,
        follows: bool = False,
        metrics_interval: float,
        check_interval: float,
    ) -> None:
        self._registry = registry
        self._transport_factory = transport_factory
        self._search = search
        self._follows = follows
        self._transports: dict[str, tuple[Node, Transport]] = {}
        self._agents: dict[str, tuple[Node, Transport]] = {}
        self._watchers: dict[str, tuple[Node, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self.monitor = HealthMonitor(
            registry,
            self.transport_of,
            agent_of=self._agent_of,
            metrics_interval=metrics_interval,
            check_interval=check_interval,
        )

    def start(self) -> None:
        """Start to watch the nodes, and to search if asked to. Returns at once."""
        self._registry.wait_by(FutureGate, TaskScope)
        if self._search is not None:
            # Set here, not in the task, so that the next call waits for what the search finds.
            self._registry.set_searching(True)
            self.spawn(self._keep_searching(self._search), "search for nodes")
            if self._follows:
                self.spawn(self._registry.watch(**self._search), "follow the network")
        self._watch_nodes()
        self.spawn(self._follow_registry(), "follow the registry")

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Run `work` in the background; it is cancelled when the pool closes."""
        if self._is_closed:
            work.close()  # no later cancel() would end it
            return
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> list[asyncio.Task[Any]]:
        """Cancel all tasks, and return them."""
        self._is_closed = True
        tasks = [*self._tasks, *(task for _, task in self._watchers.values())]
        self._watchers.clear()
        for task in tasks:
            task.cancel()
        return tasks

    async def aclose(self) -> None:
        """Close every connection."""
        for _, transport in [*self._transports.values(), *self._agents.values()]:
            with anyio.move_on_after(CLOSE_SECONDS):
                await transport.aclose()
        self._transports.clear()
        self._agents.clear()

    # Connections.

    def transport_of(self, name: str) -> Transport:
        """The transport to a node. Raises PoolClosed."""
        node = self._registry[name]
        known = self._transports.get(name)
        # Compare nodes, not names: another node may have taken the name, with other headers.
        if known is not None and known[0] is node:
            return known[1]
        return self._made(self._transports, node, node.spec)

    def _agent_of(self, name: str) -> Transport | None:
        node = self._registry[name]
        if node.spec.agent is None:
            return None
        known = self._agents.get(name)
        if known is not None and known[0] is node:
            return known[1]
        # Without the headers, which are for the node: its agent must not see a token in them.
        spec = NodeSpec(node.spec.agent, f"{name} (agent)")
        return self._made(self._agents, node, spec)

    def _made(
        self, transports: dict[str, tuple[Node, Transport]], node: Node, spec: NodeSpec
    ) -> Transport:
        if self._is_closed:
            raise PoolClosed("the pool is closed")
        transport = self._transport_factory(spec)
        transports[node.name] = (node, transport)
        return transport

    # Tasks.

    async def _follow_registry(self) -> None:
        """Keep watchers and transports in step with nodes that are added and removed."""
        located: set[str] = set()
        while True:
            version = self._registry.version
            self._watch_nodes()
            for transports in (self._transports, self._agents):
                for name, (node, transport) in list(transports.items()):
                    if not self._is_current(name, node):
                        del transports[name]
                        await transport.aclose()
            urls = set(self._registry.nodes)
            if urls - located:
                located = urls
                await self._registry.locate()
            await self._registry.wait_changed(version)

    def _watch_nodes(self) -> None:
        for name, (node, task) in list(self._watchers.items()):
            if not self._is_current(name, node):
                task.cancel()
                del self._watchers[name]
        for node in self._registry:
            if node.name not in self._watchers:
                task = asyncio.create_task(self.monitor.watch(node.name), name=f"watch {node.name}")
                self._watchers[node.name] = (node, task)

    def _is_current(self, name: str, node: Node) -> bool:
        return name in self._registry and self._registry[name] is node

    async def _keep_searching(self, options: Mapping[str, Any]) -> None:
        """Search until there is a node."""
        log.info(
            "%s: searching the network for Ollama servers "
            "(SOLLOL_AUTO_DISCOVER=false turns this off)",
            f"{len(self._registry)} nodes given" if len(self._registry) else "no nodes given",
        )
        while True:
            try:
                await self._registry.discover_and_add_nodes(**options)
            except SollolError as error:
                log.warning("the search for nodes failed: %s", error)
            if len(self._registry) or self._follows:
                return
            log.warning("no Ollama server was found; searching again in %g s", SEARCH_INTERVAL)
            await asyncio.sleep(SEARCH_INTERVAL)
