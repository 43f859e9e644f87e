"""Programs that share nodes, in virtual time, with a coordinator in memory."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import anyio

from aiosollol.cluster.state import ClusterState
from aiosollol.core.leasing.protocol import (
    CoordinatorReply,
    LeaseCoordinator,
    MemberReport,
)
from aiosollol.errors import EngineError
from aiosollol.sharing import (
    LeaseClient,
)

MODEL = "nomic-embed-text:latest"


class InMemory:
    """A coordinator that can be unavailable or slow."""

    name = "memory"

    def __init__(self) -> None:
        self.commons = LeaseCoordinator()
        self.is_gone = False
        self.seconds = 0.0
        self.asked: Counter[str] = Counter()
        self.left: list[str] = []
        self.start_seconds = 0.0

    async def start(self) -> None:
        await anyio.sleep(self.start_seconds)

    async def exchange(self, report: MemberReport) -> CoordinatorReply:
        self.asked[report.member] += 1
        await anyio.sleep(self.seconds)
        if self.is_gone:
            raise EngineError("memory", "is gone")
        told = self.commons.exchange(MemberReport.load(report.dump()), anyio.current_time())
        return CoordinatorReply.load(told.dump())

    async def leave(self, member: str) -> None:
        self.left.append(member)
        self.commons.leave(member, anyio.current_time())


class Program:
    """A registry that shares its nodes, and requests that use them."""

    def __init__(
        self,
        coordinator: InMemory,
        name: str,
        *,
        weight: float = 1.0,
        nodes: tuple[Any, ...] = ("10.0.0.1",),
        group: str | None = None,
        machine: str = "here",
    ) -> None:
        self.registry = ClusterState(nodes)
        self.probed: list[str] = []
        self.sharing = LeaseClient(
            self.registry,
            coordinator,
            self.probe,
            member=name,
            group=name if group is None else group,
            weight=weight,
            machine=machine,
            rng=random.Random(0),
        )
        self.done = 0
        self.seconds = 0.0

    async def probe(self, name: str) -> None:
        self.probed.append(name)

    async def use(self, node: str, seconds: float) -> None:
        """Send one request after another until cancelled."""
        while True:
            await self.request(node, seconds)

    async def request(self, name: str, seconds: float) -> None:
        node = self.registry[name]
        await node.enter()
        try:
            await anyio.sleep(seconds)
            self.done += 1
            self.seconds += seconds
        finally:
            node.leave_chunk()

    @property
    def caps(self) -> dict[str, float]:
        return {node.name: node.cap for node in self.registry}

    @property
    def under_way(self) -> int:
        return sum(node.in_flight for node in self.registry)


ONE = "10.0.0.1:11434"
NO_LIMIT = float("inf")
