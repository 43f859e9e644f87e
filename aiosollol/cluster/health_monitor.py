"""Keeps node states up to date, with one polling loop per node."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup

from aiosollol.cluster.state import ClusterState
from aiosollol.core.node_transitions import (
    Described,
    Measured,
    Probed,
    ProbeFailed,
)
from aiosollol.core.routing.retry import Failure, classify
from aiosollol.errors import NodeError
from aiosollol.ports import Transport
from aiosollol.wire.agent import AGENT_PATH, load_report
from aiosollol.wire.ollama import client

PROBE_SECONDS = 5.0
PS_SECONDS = 2.0
"""``/api/ps`` can hang for seconds behind a stuck runner; nothing must wait that long for it."""

METRICS_INTERVAL = 30.0
CHECK_INTERVAL = 120.0
DOWN_INTERVAL = 2.0
_FIRST_LOOK = 0.25


class HealthMonitor:
    """Polls nodes and updates the cluster state. Intervals are seconds.

    transport_of: the transport to a node, by name.
    agent_of: the transport to its agent, by name; None if it has none.
    metrics_interval: between polls of the loaded models and the agent's measurements.
    check_interval: between full probes.
    """

    def __init__(
        self,
        cluster: ClusterState,
        transport_of: Callable[[str], Transport],
        *,
        agent_of: Callable[[str], Transport | None] = lambda name: None,
        metrics_interval: float = METRICS_INTERVAL,
        check_interval: float = CHECK_INTERVAL,
        rng: random.Random | None = None,
    ) -> None:
        self._cluster = cluster
        self._transport_of = transport_of
        self._agent_of = agent_of
        self._metrics_interval = metrics_interval
        self._check_interval = check_interval
        self._rng = rng or random.Random()

    async def watch(self, name: str) -> None:
        """Poll a node until it is removed or this is cancelled.

        A node in trouble, whatever the source of the report, is probed soon.
        """
        checked_at = -float("inf")
        looks = 0
        while name in self._cluster:
            # Slightly less than the interval, so that jitter does not defer the check to the next
            # poll.
            since_check = self._cluster.clock() - checked_at
            if self._is_troubled(name) or since_check > 0.75 * self._check_interval:
                await self.probe(name)
                checked_at = self._cluster.clock()
            else:
                await self.measure(name)
            looks = looks + 1 if self._is_troubled(name) else 0
            # Jitter, so that programs that watch the same nodes do not poll at the same moment.
            jitter = self._rng.uniform(0.8, 1.2)
            if not looks:
                with anyio.move_on_after(self._metrics_interval * jitter):
                    while name in self._cluster and not self._is_troubled(name):
                        await self._cluster.wait_changed(self._cluster.version)
            if self._is_troubled(name):
                # It may be back in a moment, or only in days.
                soon = _FIRST_LOOK * 2 ** min(looks, 16)
                await anyio.sleep(min(soon, DOWN_INTERVAL) * jitter)

    def _is_troubled(self, name: str) -> bool:
        """Whether a node is down, or its last probe failed."""
        if name not in self._cluster:
            return False
        node = self._cluster[name]
        return node.state.is_down or node.state.missed > 0

    async def probe(self, name: str) -> None:
        """Request a node's models, version and loaded models concurrently. Never raises NodeError.

        The answer with the models decides whether it is up, and is applied at once, because the
        others can be slow.
        """
        transport = self._transport_of(name)
        async with anyio.create_task_group() as group:
            group.start_soon(self._ask_version, name, transport)
            group.start_soon(self._ask_loaded, name, transport)
            self._start_agent(group, name)
            try:
                body = await transport.request("GET", "/api/tags", timeout=PROBE_SECONDS)
                self._cluster.apply(name, Probed(None, client.load_tags(name, body)))
            except NodeError as error:
                self._cluster.apply(name, ProbeFailed(error))

    async def measure(self, name: str) -> None:
        """Request a node's loaded models and its agent's measurements. Never raises NodeError.

        Only an unreachable node counts as a failed probe.
        """
        async with anyio.create_task_group() as group:
            self._start_agent(group, name)
            error = await self._ask_loaded(name, self._transport_of(name))
            if error is not None and classify(error) is Failure.NODE:
                self._cluster.apply(name, ProbeFailed(error))

    async def ask_loaded(self, name: str) -> NodeError | None:
        """Request a node's loaded models. Returns why it did not tell them, if so."""
        return await self._ask_loaded(name, self._transport_of(name))

    async def _ask_loaded(self, name: str, transport: Transport) -> NodeError | None:
        try:
            body = await transport.request("GET", "/api/ps", timeout=PS_SECONDS)
            self._cluster.apply(name, Described(None, client.load_ps(name, body)))
        except NodeError as error:
            return error
        return None

    async def _ask_version(self, name: str, transport: Transport) -> None:
        with contextlib.suppress(NodeError):
            body = await transport.request("GET", "/api/version", timeout=PROBE_SECONDS)
            self._cluster.apply(name, Described(client.load_version(name, body), None))

    def _start_agent(self, group: TaskGroup, name: str) -> None:
        agent = self._agent_of(name)
        if agent is not None:
            group.start_soon(self._ask_agent, name, agent)

    async def _ask_agent(self, name: str, transport: Transport) -> None:
        try:
            body = await transport.request("GET", AGENT_PATH, timeout=PS_SECONDS)
            report = load_report(name, body)
        except NodeError:
            # Its earlier measurements are outdated.
            self._cluster.apply(name, Measured(None, None, None))
            return
        self._cluster.apply(
            name,
            Measured(
                report.cpu_load,
                report.gpu_memory_total,
                report.gpu_memory_free,
                report.machine,
            ),
        )
