"""Keeps what is known of the nodes up to date: one loop per node."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import anyio

from aiosollol.core.health import Described, Probed, ProbeFailed
from aiosollol.errors import NodeError
from aiosollol.ports import Transport
from aiosollol.registry import Registry
from aiosollol.wire import ollama

PROBE_SECONDS = 5.0
PS_SECONDS = 2.0
"""``/api/ps`` can hang behind a wedged runner for seconds; nothing must wait for it that long."""

UP_INTERVAL = 30.0
DOWN_INTERVAL = 2.0
_FIRST_LOOK = 0.25


class Monitor:
    """Asks nodes what they are and have, and tells the registry.

    transport_of: how to reach a node, by name. up_interval, down_interval: seconds between two
    looks at a node that is up, and at one that is down.
    """

    def __init__(
        self,
        registry: Registry,
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
        """Look at a node again and again, until it is removed or this is cancelled.

        One that went down, by whatever was noticed, is looked at soon.
        """
        looks = 0
        while name in self._registry:
            await self.probe(name)
            looks = looks + 1 if self._is_down(name) else 0
            # Jitter: many programs watch the same nodes, and must not all ask at the same moment.
            jitter = self._rng.uniform(0.8, 1.2)
            if not looks:
                with anyio.move_on_after(self._up_interval * jitter):
                    while name in self._registry and not self._is_down(name):
                        await self._registry.wait_changed(self._registry.version)
            if self._is_down(name):
                # It may be back in a moment, or not for days.
                soon = _FIRST_LOOK * 2 ** min(looks, 16)
                await anyio.sleep(min(soon, self._down_interval) * jitter)

    def _is_down(self, name: str) -> bool:
        return name in self._registry and self._registry[name].state.is_down

    async def probe(self, name: str) -> None:
        """Ask one node for its models, its version and what it has loaded, all at once.

        Its models decide whether it is up, and the registry learns of them at once: the others can
        be slow. Never raises for what the node does.
        """
        transport = self._transport_of(name)
        async with anyio.create_task_group() as group:
            group.start_soon(self._describe, name, transport)
            try:
                body = await transport.request("GET", "/api/tags", timeout=PROBE_SECONDS)
                self._registry.apply(name, Probed(None, ollama.load_tags(name, body)))
            except NodeError as error:
                self._registry.apply(name, ProbeFailed(error))

    async def _describe(self, name: str, transport: Transport) -> None:
        """Learn what helps to choose a node; that a node does not tell is no fault."""
        version = loaded = None
        with contextlib.suppress(NodeError):
            body = await transport.request("GET", "/api/version", timeout=PROBE_SECONDS)
            version = ollama.load_version(name, body)
        with contextlib.suppress(NodeError):
            body = await transport.request("GET", "/api/ps", timeout=PS_SECONDS)
            loaded = ollama.load_ps(name, body)
        if version is not None or loaded is not None:
            self._registry.apply(name, Described(version, loaded))
