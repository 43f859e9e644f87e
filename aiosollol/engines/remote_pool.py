"""`RemotePool`: a pool in an engine's worker, which embeds partitions within its leases.

The messages are the same for Dask and Ray: `Terms` are answered by a `Look`, and a `Partition` by a
`PartitionResult`. All can be pickled.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from aiosollol.cluster.state import ClusterState
from aiosollol.config.resolve import Origin, Resolved
from aiosollol.config.settings import ARGUMENT, TABLE, Settings
from aiosollol.core.node import NodeSpec
from aiosollol.core.offload.partitions import Partition, PartitionResult
from aiosollol.core.stats import NodeCounters
from aiosollol.pool.assembly import assemble
from aiosollol.pool.registry import NodeRegistry

LEASE_SECONDS = 10.0
"""How long a worker may use a lease that is not renewed."""

_REPORTS_KEPT = 64


class NodeEntry(NamedTuple):
    """A node, as sent to workers. distrusted: models whose vectors must not be used."""

    spec: NodeSpec
    is_draining: bool = False
    distrusted: frozenset[str] = frozenset()


class Terms(NamedTuple):
    """The terms of a worker.

    nodes: all nodes; None if unchanged.
    slots: the lease, as requests at once by node; None for no lease yet.
    serial: of the lease.
    answers: the number of the `Look` that the lease answers.
    """

    nodes: tuple[NodeEntry, ...] | None = None
    slots: Mapping[str, int] | None = None
    serial: int = 0
    answers: int = 0


class Look(NamedTuple):
    """The state of a worker.

    number: increases with every look.
    serial: of the last lease applied.
    using: requests in flight, by node.
    wants: requests in flight and waiting, by node.
    up: the nodes that answer it.
    down: the error of each node that does not.
    """

    number: int
    serial: int
    using: Mapping[str, int]
    wants: Mapping[str, int]
    up: frozenset[str]
    down: Mapping[str, str]


class RemotePool:
    """A pool that follows the terms of its client. Use it in one event loop; `aclose` it.

    name: the worker's name in its results.
    settings: the client's.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self._registry = NodeRegistry(clock=time.monotonic)
        self._parts = assemble(self._registry, _resolved(far_settings(settings)))
        self._parts.operations.allow({})
        self._slots: Mapping[str, int] = {}
        self._serial = 0
        self._number = 0
        self._looked_at: deque[tuple[int, float]] = deque(maxlen=_REPORTS_KEPT)
        self._ending: asyncio.TimerHandle | None = None
        self._counted: dict[str, NodeCounters] = {}

    async def obey(self, terms: Terms) -> Look:
        """Apply `terms`, and return the state. Queries new nodes first, for 7 s at most.

        A lease older than the current one is ignored.
        """
        self._parts.lifecycle.start()
        if terms.nodes is not None and follow_nodes(self._registry, terms.nodes):
            self._allow(self._slots)  # nothing on the new ones
            await self._parts.operations.refresh()
        if terms.slots is not None and terms.serial > self._serial:
            self._lease(terms.slots, terms.serial, terms.answers)
        return self._look()

    async def embed(self, partition: Partition) -> PartitionResult:
        """The vectors of a partition. Raises SollolError if no node can embed any of it."""
        settings = partition.settings
        embeddings = await self._parts.worker_access.embed_partition(
            settings, partition.texts, partition.planning, partition.digest
        )
        report = embeddings.report
        return PartitionResult(
            memoryview(embeddings.buffer).cast("B"),
            embeddings.dim,
            len(embeddings),
            self.name,
            embeddings.errors,
            report.nodes if report else {},
            self._take_counters(),
            report.splits if report else 0,
            report.copies if report else 0,
            report.truncated if report else 0,
        )

    async def aclose(self) -> None:
        """Cancel requests in flight and close the pool. Idempotent."""
        if self._ending is not None:
            self._ending.cancel()
        await self._parts.lifecycle.aclose(0.0)

    # Leases.

    def _lease(self, slots: Mapping[str, int], serial: int, answers: int) -> None:
        """Apply a lease. It ends one term after the `Look` that it answers was taken.

        So it ends here before it ends in the client's book, however slow the messages were.
        """
        since = next((at for number, at in self._looked_at if number == answers), None)
        if since is None:
            return  # too late: its end is unknown
        self._serial = serial
        self._allow(slots)
        if self._ending is not None:
            self._ending.cancel()
        left = since + LEASE_SECONDS - time.monotonic()
        self._ending = asyncio.get_running_loop().call_later(left, self._allow, {})

    def _allow(self, slots: Mapping[str, int]) -> None:
        self._slots = slots
        allowed = {node.name: slots.get(node.name, 0) for node in self._registry}
        self._parts.operations.allow(allowed)

    def _look(self) -> Look:
        usage = self._parts.operations.usage()
        self._number += 1
        self._looked_at.append((self._number, time.monotonic()))
        return Look(
            self._number,
            self._serial,
            {name: each.using for name, each in usage.items() if each.using},
            {name: each.wants for name, each in usage.items() if each.wants},
            frozenset(node.name for node in self._registry if node.is_known and not node.is_down),
            {node.name: f"{node.error} ({node.spec.url})" for node in self._registry if node.error},
        )

    def _take_counters(self) -> dict[str, NodeCounters]:
        """The counters since the last call, by node."""
        taken = {}
        for node in self._registry:
            counted = self._counted.get(node.name, NodeCounters())
            delta = _difference(node.counters, counted)
            if delta.total:
                taken[node.name] = delta
                self._counted[node.name] = copy.copy(node.counters)
        return taken


def _difference(now: NodeCounters, before: NodeCounters) -> NodeCounters:
    counts = {each.name: getattr(now, each.name) for each in fields(NodeCounters)}
    for name, count in counts.items():
        if name != "latency":  # an average
            counts[name] = count - getattr(before, name)
    return NodeCounters(**counts)


def far_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The client's settings for its workers: without engines, discovery and canaries."""
    return {
        **settings,
        "canary": False,
        "auto_discover": False,
        "watch_network": False,
        "enable_dask": False,
        "enable_ray": False,
    }


def entries_of(registry: ClusterState) -> tuple[NodeEntry, ...]:
    """The client's nodes, to send to its workers."""
    return tuple(
        NodeEntry(node.spec, node.is_draining, frozenset(node.distrusted)) for node in registry
    )


def follow_nodes(registry: ClusterState, entries: Sequence[NodeEntry]) -> bool:
    """Make a worker's nodes equal to its client's. Returns whether any is new."""
    wanted = {entry.spec.name: entry for entry in entries}
    for node in list(registry):
        if node.name not in wanted or wanted[node.name].spec != node.spec:
            registry.remove(node.name)
    has_new = False
    for name, entry in wanted.items():
        if name not in registry:
            has_new = True
            registry.add(entry.spec)
            if name not in registry:  # on this machine, the same server as another node
                continue
        registry[name].mirror(is_draining=entry.is_draining, distrusted=entry.distrusted)
    registry.wake()
    return has_new


def _resolved(settings: Mapping[str, Any]) -> Resolved:
    """The client's settings, ignoring the worker's environment."""
    made = Settings(**settings)
    origins = {name: Origin(getattr(made, name), ARGUMENT) for name in TABLE}
    return Resolved(made, origins, None, {})
