"""`NodeRegistry`: the nodes of a pool; finds, checks and saves them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any

import anyio

from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.locality import is_loopback, is_name
from aiosollol.core.networks import Discovered
from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.errors import InvalidInput
from aiosollol.net.connector import DnsCache
from aiosollol.net.transport import HttpTransport
from aiosollol.ports import Transport

log = logging.getLogger("aiosollol")

Search = Callable[..., AsyncIterable[Discovered]]
"""The type of `discovery.discover`: options in, nodes out as they answer."""

_CHECK_SECONDS = 7.0


class NodeRegistry(ClusterState):
    """The nodes of a pool, which may be changed while the pool runs.

    A collection of `Node`, by name; `nodes` has them by URL. Lower priority numbers go first.

    auto_discover: whether the pool that uses it searches the network when it starts.
    search, watch, names, transport_factory: replace discovery, network watching, DNS and the
    transport to a node, for tests.

    Raises InvalidInput for invalid nodes.
    """

    def __init__(
        self,
        nodes: Iterable[NodeLike] = (),
        *,
        auto_discover: bool = False,
        clock: Callable[[], float] = anyio.current_time,
        search: Search | None = None,
        watch: Callable[..., Any] | None = None,
        names: DnsCache | None = None,
        transport_factory: Callable[[NodeSpec], Transport] = HttpTransport,
    ) -> None:
        super().__init__(nodes, clock=clock)
        self.auto_discover = auto_discover
        self._search = search or _discover
        self._watch = watch or _follow
        self._names = names or DnsCache()
        self._transport_factory = transport_factory

    # One node.

    async def add_node(
        self, url: NodeLike, name: str = "", priority: int = 0, auto_probe: bool = True
    ) -> Node:
        """Add a node, probe it if `auto_probe`, and return it, whether up or down.

        A node that is present already, by URL or as the same server, is returned unchanged. Raises
        InvalidInput if it is invalid, or its name is taken.
        """
        node = self.add({"url": url, "name": name, "priority": priority} if _is_text(url) else url)
        if auto_probe:
            await self._check([node])
        return node

    def remove_node(self, node: str) -> Node:
        """Remove a node, by URL or name. Raises InvalidInput if there is no such node."""
        return self.remove(self.find(node).name)

    def get_node_by_url(self, url: str) -> Node | None:
        """The node at `url`, however it is written; None if there is no such node."""
        try:
            wanted = NodeSpec(url).url
        except InvalidInput:
            return None
        return self.nodes.get(wanted)

    # All of them.

    def get_healthy_nodes(self) -> list[Node]:
        """The nodes that answered their last probe."""
        return [node for node in self if node.is_known and not node.state.is_down]

    def get_gpu_nodes(self) -> list[Node]:
        """The nodes known to have a GPU."""
        return [node for node in self if node.state.has_gpu() or node.state.gpu_memory_total]

    async def health_check_all(self) -> dict[str, bool]:
        """Probe every node: name -> whether it answered. Takes at most 7 s."""
        await self._check(list(self))
        return {node.name: not node.state.is_down for node in self}

    async def _check(self, nodes: Sequence[Node]) -> None:
        transports = {node.name: self._transport_factory(node.spec) for node in nodes}
        monitor = HealthMonitor(self, transports.__getitem__)
        try:
            with anyio.move_on_after(_CHECK_SECONDS):
                async with anyio.create_task_group() as group:
                    for name in transports:
                        group.start_soon(monitor.probe, name)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                for transport in transports.values():
                    await transport.aclose()

    # Finding them.

    async def discover_and_add_nodes(self, timeout: float = 0.5, **options: Any) -> int:
        """Search the network, add each node as it answers, and return how many are new.

        timeout: seconds that an address has to answer. options: those of `discovery.discover`.
        Nodes that are present already are asked too. Raises InvalidInput.
        """
        before = set(self._nodes)
        self.set_searching(True)
        try:
            async for found in self._search(timeout=timeout, known=list(self.nodes), **options):
                self.add_found(found)
        finally:
            self.set_searching(False)
        return len(set(self._nodes) - before)

    def add_found(self, found: Discovered) -> Node:
        """Add a node found by a search, or return it if present already."""
        known = self.nodes.get(found.url)
        if known is None:
            name = found.name if found.name and found.name not in self else ""
            known = self.add(
                NodeSpec(
                    url=found.url,
                    name=name,
                    fingerprint=found.fingerprint or None,
                    agent=found.agent or None,
                ),
                found.source,
            )
            if known.spec.url == found.url:
                log.info("found node %s at %s (%s)", known.name, found.url, found.source)
        if found.machine:
            self.learn_machine(known.name, found.machine)
        return known

    async def watch(self, *, interval: float = 60.0, **options: Any) -> None:
        """Watch the network until cancelled: add nodes that appear, remove those that leave.

        Announcements are handled at once, and the network is searched every `interval` seconds.
        Only nodes that were discovered are removed, never those that were given. options: those of
        `discovery.discover`. Raises InvalidInput.
        """
        from aiosollol.discovery.search import Arrived  # loads zeroconf

        async with self._watch(interval=interval, known=list(self.nodes), **options) as changes:
            async for change in changes:
                if isinstance(change, Arrived):
                    self.add_found(change.node)
                    continue
                node = self.nodes.get(change.node.url)
                if node is not None and node.source is not None:
                    log.info("node %s is gone: %s", node.name, change.reason)
                    self.remove(node.name)

    async def locate(self) -> None:
        """Find out which nodes are on this machine, and which names share an address.

        Skipped if addresses alone tell: with one node, or loopback only. Takes at most 2 s, and
        never raises for DNS errors. Raises ConfigError for an invalid machine id in the
        environment.
        """
        hosts = {node.spec.address.host for node in self}
        if len(self) < 2 or all(map(is_loopback, hosts)):
            return
        from aiosollol.discovery.local_machine import (
            machine_id,
            read_surroundings,  # loads netifaces or ifaddr
        )

        surroundings = await read_surroundings()
        own_machine = await asyncio.to_thread(machine_id)
        own = frozenset(str(interface.address.ip) for interface in surroundings.interfaces)
        resolved = await self._names.resolve(host.lower() for host in hosts if is_name(host))
        self.learn_facts(self.facts._replace(own=own, resolved=resolved, own_machine=own_machine))

    # Keeping them.

    def load_config(self, path: str | os.PathLike[str] | None = None) -> int:
        """Add the nodes of a file, and return how many are new.

        path: JSON as written by `save_config`, or a hosts.txt with one ``host:port`` a line; None
        is the default file. Blocking. Raises ConfigError, which names file and entry.
        """
        from aiosollol.config.files import default_nodes_path, find_nodes_file, load_nodes

        before = set(self._nodes)
        for spec in load_nodes(path or find_nodes_file() or default_nodes_path()):
            if spec.url not in self.nodes:
                self.add(spec)
        return len(set(self._nodes) - before)

    def save_config(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the nodes to a file, atomically. None is the default file.

        Headers are included, so a new file is readable by its owner only. Blocking. Raises
        ConfigError.
        """
        from aiosollol.config.files import default_nodes_path, save_nodes

        save_nodes(path or default_nodes_path(), [node.spec for node in self])


def _discover(**options: Any) -> AsyncIterable[Discovered]:
    from aiosollol.discovery import discover  # loads zeroconf: only when searching

    return discover(**options)


def _follow(**options: Any) -> Any:
    from aiosollol.discovery.search import Watch

    return Watch(**options)


def _is_text(url: object) -> bool:
    return isinstance(url, str)
