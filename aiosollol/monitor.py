"""Keeps what is known of the nodes up to date: one loop per node."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio

from aiosollol.core.health import Probed, ProbeFailed
from aiosollol.core.node import LoadedModel
from aiosollol.errors import NodeError
from aiosollol.ports import Transport
from aiosollol.registry import NodeRegistry
from aiosollol.wire import ollama

PROBE_SECONDS = 5.0
PS_SECONDS = 2.0
"""``/api/ps`` can hang behind a wedged runner for seconds; nothing must wait for it that long."""

UP_INTERVAL = 30.0
DOWN_INTERVAL = 2.0


class Monitor:
    """Asks nodes what they are and have, and tells the registry.

    transport_of: how to reach a node, by name. up_interval, down_interval: seconds between two
    looks at a node that is up, and at one that is down.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        transport_of: Callable[[str], Transport],
        *,
        up_interval: float = UP_INTERVAL,
        down_interval: float = DOWN_INTERVAL,
        rng: random.Random | None = None,
    ) -> None:
        self._registry = registry
        self._transport_of = transport_of
        self._up_interval = up_interval
        self._down_interval = down_interval
        self._rng = rng or random.Random()

    async def watch(self, name: str) -> None:
        """Look at a node again and again, until it is removed or this is cancelled."""
        while name in self._registry:
            await self.probe(name)
            if name not in self._registry:
                return
            is_down = self._registry[name].state.is_down
            interval = self._down_interval if is_down else self._up_interval
            # Jitter: many programs watch the same nodes, and must not all ask at the same moment.
            await anyio.sleep(interval * self._rng.uniform(0.8, 1.2))

    async def probe(self, name: str) -> None:
        """Ask one node for its version, its models and what it has loaded, all at once.

        Never raises for what the node does; the registry learns of it.
        """
        transport = self._transport_of(name)
        version, tags, loaded = "", None, None
        problem: NodeError | None = None

        async def ask_version() -> None:
            nonlocal version, problem
            try:
                body = await transport.request("GET", "/api/version", timeout=PROBE_SECONDS)
                version = ollama.load_version(name, body)
            except NodeError as error:
                problem = error

        async def ask_tags() -> None:
            nonlocal tags, problem
            try:
                body = await transport.request("GET", "/api/tags", timeout=PROBE_SECONDS)
                tags = ollama.load_tags(name, body)
            except NodeError as error:
                problem = error

        async def ask_ps() -> None:
            nonlocal loaded
            loaded = await self._ask_ps(name, transport)

        async with anyio.create_task_group() as group:
            group.start_soon(ask_version)
            group.start_soon(ask_tags)
            group.start_soon(ask_ps)
        if tags is not None and problem is None:
            self._registry.apply(name, Probed(version, tags, loaded))
        elif problem is not None:
            self._registry.apply(name, ProbeFailed(problem))

    async def _ask_ps(self, name: str, transport: Transport) -> dict[str, LoadedModel] | None:
        try:
            body = await transport.request("GET", "/api/ps", timeout=PS_SECONDS)
            return ollama.load_ps(name, body)
        except NodeError:
            return None  # what is loaded helps to choose, but its absence is no fault
