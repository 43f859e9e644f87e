"""Opening and closing a pool: its state, and the order in which its parts start and end."""

from __future__ import annotations

import asyncio
from typing import Literal

import anyio

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.state import ClusterState
from aiosollol.errors import PoolClosed
from aiosollol.live.canary import VectorCanary
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.router import RequestRouter
from aiosollol.net.primitives import finish
from aiosollol.pool.background import CLOSE_SECONDS, BackgroundTasks
from aiosollol.pool.embedding import Embedder
from aiosollol.pool.generation import Generation
from aiosollol.sharing import LeaseClient

_LOOK_SECONDS = 0.01  # between checks for calls to end, which is rare and brief


class OpenState:
    """Whether a pool is open, and in which event loop."""

    def __init__(self) -> None:
        self.name: Literal["new", "open", "closed"] = "new"
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Mark the pool as open, in the running loop."""
        self.name = "open"
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Raise PoolClosed unless the pool is open, in the running loop."""
        if self.name == "closed":
            raise PoolClosed("the pool is closed")
        if self.name == "new":
            raise PoolClosed("the pool is not open yet: use 'async with', or await pool.start()")
        if asyncio.get_running_loop() is not self._loop:
            raise PoolClosed("the pool was opened in another event loop: create one per loop")


class Lifecycle:
    """Starts and ends the parts of a pool.

    state: whether the pool is open, shared with the parts.
    close_timeout: seconds that calls have to finish.
    """

    def __init__(
        self,
        state: OpenState,
        cluster: ClusterState,
        background: BackgroundTasks,
        eligibility: Eligibility,
        loads: ModelLoader,
        live: RequestRouter,
        batches: BatchRunner,
        embedder: Embedder,
        generation: Generation,
        engine_batches: EngineBatches,
        sharing: LeaseClient | None,
        canary: VectorCanary | None,
        close_timeout: float,
    ) -> None:
        self.state = state
        self._cluster = cluster
        self._background = background
        self._eligibility = eligibility
        self._loads = loads
        self._live = live
        self._batches = batches
        self._embedder = embedder
        self._generation = generation
        self._engine_batches = engine_batches
        self._sharing = sharing
        self._canary = canary
        self._close_timeout = close_timeout
        self._closing: asyncio.Task[None] | None = None
        self._is_impatient = False

    def start(self) -> None:
        """Start to watch the nodes. Idempotent. Raises PoolClosed if it was closed."""
        if self.state.name == "closed":
            raise PoolClosed("the pool was closed; create a new one")
        if self.state.name == "open":
            return
        self.state.open()
        self._background.start()
        if self._sharing is not None:
            self._background.spawn(self._sharing.run(), "share the nodes")
        if self._canary is not None:
            self._background.spawn(self._canary.run(), "compare vectors")

    async def aclose(self, wait: float | None) -> None:
        """Wait for calls in progress, end the rest, and close every connection. Idempotent.

        wait: seconds that other tasks' calls have to finish; `close_timeout` if None.
        """
        self.state.name = "closed"
        if self._closing is None:
            seconds = self._close_timeout if wait is None else max(0.0, wait)
            self._closing = asyncio.create_task(self._close(seconds), name="close the pool")
        elif wait is not None and wait <= 0.0:
            self._is_impatient = True
        await finish(self._closing)

    async def _close(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            # Open streams are checked twice: their readers are busy elsewhere between parts.
            looks = 2 if self._live.has_streams else 1
            idle = 0
            while not self._is_impatient:
                idle = 0 if self._live.is_busy or self._batches.is_busy else idle + 1
                if idle >= looks:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        tasks = self._background.cancel()
        self._eligibility.close()
        self._loads.close()
        for node in self._cluster:
            node.send_away()
        self._batches.close()
        with anyio.move_on_after(CLOSE_SECONDS):
            await self._embedder.aclose()
            await self._generation.aclose()
            await self._live.aclose()
            if tasks:
                await asyncio.wait(tasks)
        with anyio.move_on_after(CLOSE_SECONDS):
            await self._engine_batches.aclose()
        await self._background.aclose()
        self._cluster.hub.close()
