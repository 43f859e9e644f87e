"""`NodeChanges`: changes the nodes of a running pool without failing requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from aiosollol.core.node import NodeSpec
from aiosollol.errors import InvalidInput, SollolError
from aiosollol.pool.facade import OllamaPool

log = logging.getLogger("aiosollol")


class NodeChanges:
    """Adds nodes at once, and removes others when their requests have ended.

    `aclose` it before the pool.

    patience: seconds until a node is removed anyway; its requests, except streams, then move to
        other nodes.
    """

    def __init__(self, pool: OllamaPool, patience: float) -> None:
        self._pool = pool
        self.patience = patience
        self._leaving: dict[str, tuple[NodeSpec, asyncio.Task[None]]] = {}
        self._coming: set[asyncio.Task[None]] = set()

    async def change(self, old: Iterable[NodeSpec], new: Iterable[NodeSpec]) -> None:
        """Change from one list of nodes to another. A node with a new spec is removed and added."""
        before = {spec.url: spec for spec in old}
        after = {spec.url: spec for spec in new}
        for url, spec in before.items():
            if after.get(url) != spec and url not in self._leaving:
                leaving = asyncio.create_task(self._remove(spec), name=f"remove {spec.name}")
                self._leaving[url] = (spec, leaving)
        for url, spec in after.items():
            if before.get(url) != spec:
                await self._come(spec)

    async def aclose(self) -> None:
        """Stop waiting for nodes that are being removed."""
        tasks = [*self._coming, *(task for _, task in self._leaving.values())]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _come(self, spec: NodeSpec) -> None:
        known = self._leaving.get(spec.url)
        if known is not None and known[0] == spec:  # being removed, and may stay
            known[1].cancel()
            await asyncio.wait([known[1]])
            with contextlib.suppress(InvalidInput):
                self._pool.resume(spec.url)
                return
        ahead = [
            task
            for other, task in self._leaving.values()
            if other.url == spec.url or other.name == spec.name
        ]
        if not ahead:
            await self._add(spec)
            return
        coming = asyncio.create_task(self._add_after(ahead, spec), name=f"add {spec.name}")
        self._coming.add(coming)
        coming.add_done_callback(self._coming.discard)

    async def _add_after(self, ahead: list[asyncio.Task[None]], spec: NodeSpec) -> None:
        await asyncio.wait(ahead)
        await self._add(spec)

    async def _add(self, spec: NodeSpec) -> None:
        try:
            await self._pool.add_node(spec)
        except SollolError as error:
            log.warning("node %s was not added: %s", spec.name, error)

    async def _remove(self, spec: NodeSpec) -> None:
        try:
            with contextlib.suppress(InvalidInput):  # it was already removed
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.patience):
                        await self._pool.drain(spec.url)
                await self._pool.remove_node(spec.url)
        finally:
            self._leaving.pop(spec.url, None)
