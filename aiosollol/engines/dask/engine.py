"""`DaskEngine`: computes batches on Dask workers, each with a pool of the client's nodes."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio

from aiosollol.cluster.node import has_same_vectors
from aiosollol.cluster.state import ClusterState
from aiosollol.config.settings import TABLE, Settings
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome
from aiosollol.core.offload.write_report import WriteOrder, WriteReport
from aiosollol.engines.partition_dispatcher import PartitionDispatcher
from aiosollol.errors import EngineError, NodeError
from aiosollol.net.subprocess import ServerProcess

if TYPE_CHECKING:
    from aiosollol.engines.dask.link import DaskLink
    from aiosollol.engines.lease_leader import LeaseLeader

log = logging.getLogger("aiosollol")

START_SECONDS = 60.0
_GUESSED_START = 6.0  # of a local cluster of two workers, until measured
_GUESSED_CONNECT = 1.0


def make_engine(settings: Settings, registry: ClusterState) -> DaskEngine:
    """The engine of a pool with these settings and nodes. It starts on first use."""
    return DaskEngine(settings, registry)


class DaskEngine:
    """A `ports.WritingEngine`. `distributed` is loaded when it starts.

    With `dask_address` it is a client of that scheduler; else it starts a cluster on this machine,
    in other processes, which ends with it.
    """

    name = "dask"

    def __init__(self, settings: Settings, registry: ClusterState) -> None:
        self._settings = settings
        self._registry = registry
        self._address = settings.dask_address
        self._numbers = count()
        self._session: Session | None = None
        self._starting: asyncio.Task[Session] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._start_seconds = _GUESSED_START if self._address is None else _GUESSED_CONNECT
        self._is_closed = False

    @property
    def start_seconds(self) -> float:
        return 0.0 if self._is_running else self._start_seconds

    @property
    def _is_running(self) -> bool:
        return self._session is not None and self._session.is_up

    async def carry(self, job: EngineJob, put: Callable[[int, Embeddings], None]) -> EngineOutcome:
        session = await self._open()
        from aiosollol.engines.dask.batch import DaskWorkers  # loaded by `_start`, in a thread

        link, leader = session.link, session.leader
        async with leader.leading():
            nodes = self._having(job)
            await leader.wait_fit(nodes)
            workers = DaskWorkers(link, leader, nodes)
            return await PartitionDispatcher(workers, job, put, self._numbers, link.dashboard).run()

    def _having(self, job: EngineJob) -> list[str]:
        """The nodes that can compute `job`, according to this process."""
        model = job.settings.model
        return [
            node.name
            for node in self._registry
            if node.has_model(model)
            and not node.is_draining
            and has_same_vectors(node, model, job.digest)
        ]

    async def write(
        self, collection: Any, order: WriteOrder, on_progress: Callable[[int, int], None] | None
    ) -> WriteReport:
        session = await self._open()
        from aiosollol.engines.dask.collection_writer import Writing

        async with session.leader.leading():
            writing = Writing(
                session.link, session.leader, self._registry, collection, order, self._numbers
            )
            return await writing.run(on_progress)

    def stats(self) -> dict[str, Any]:
        session = self._session if self._is_running else None
        return {
            "enabled": True,
            "running": session is not None,
            "dashboard": session and session.link.dashboard,
            "scheduler": session.link.scheduler if session else self._address,
            "workers": len(session.leader.workers) if session else 0,
        }

    async def aclose(self) -> None:
        self._is_closed = True
        starting = self._starting
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                self._session = starting.result()  # it finished before the cancellation
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()
        if self._ending:
            await asyncio.wait(self._ending)

    # Starting.

    async def _open(self) -> Session:
        """The session; concurrent callers share one start. Raises EngineError."""
        if self._is_closed:
            raise EngineError("dask", "is closed")
        if self._session is not None:
            if self._session.is_up:
                return self._session
            lost, self._session = self._session, None
            ending = asyncio.create_task(lost.aclose(), name="end a lost session of Dask")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        starting = self._starting
        if starting is None:
            starting = asyncio.create_task(self._start(), name="start Dask")
            starting.add_done_callback(self._has_started)
            self._starting = starting
        # Not awaited directly: cancelling one caller must not cancel it for others.
        await asyncio.wait([starting])
        if starting.cancelled():
            raise EngineError("dask", "was closed while it started")
        return starting.result()

    def _has_started(self, starting: asyncio.Task[Session]) -> None:
        self._starting = None
        if not starting.cancelled() and starting.exception() is None:
            self._session = starting.result()

    async def _start(self) -> Session:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.to_thread(_load)
        session = await Session.start(self._settings, self._registry)
        self._start_seconds = loop.time() - began
        return session


class Session:
    """A connection to a cluster, which may be its own, and the task of its `LeaseLeader`."""

    def __init__(
        self,
        cluster: ServerProcess | None,
        link: DaskLink,
        leader: LeaseLeader,
        task: asyncio.Task[None],
    ) -> None:
        self.cluster = cluster
        self.link = link
        self.leader = leader
        self._task = task

    @classmethod
    async def start(cls, settings: Settings, registry: ClusterState) -> Session:
        """Connect to the scheduler, or to a new cluster. Raises EngineError."""
        from aiosollol.engines.dask.link import DaskLink
        from aiosollol.engines.lease_leader import LeaseLeader

        cluster = None
        address = settings.dask_address
        if address is None:
            cluster = _local_cluster(settings.dask_workers or os.cpu_count() or 1)
            try:
                address = await cluster.start()
            except NodeError as error:
                raise EngineError("dask", f"could not start a cluster: {error.detail}") from error
        values: Mapping[str, Any] = {name: getattr(settings, name) for name in TABLE}
        try:
            link = await DaskLink.connect(address, values)
        except BaseException:
            if cluster is not None:
                with anyio.CancelScope(shield=True):
                    await cluster.aclose()
            raise
        leader = LeaseLeader("dask", link, registry)
        link.on_begun = leader.wake  # the worker knows the slots it wants only now
        task = asyncio.create_task(leader.run(), name="lead the workers of Dask")
        return cls(cluster, link, leader, task)

    @property
    def is_up(self) -> bool:
        """Whether it appears usable."""
        return self.link.is_up and not self._task.done()

    async def aclose(self) -> None:
        """Leave the cluster, and stop it if it is ours."""
        self._task.cancel()
        try:
            await asyncio.wait([self._task])
            await self.link.aclose()
        finally:
            if self.cluster is not None:
                with anyio.CancelScope(shield=True):  # bounded
                    await self.cluster.aclose()
        if not self._task.cancelled() and (error := self._task.exception()):
            log.error("leading the Dask workers failed", exc_info=error)


def _load() -> None:
    # Takes a second, which would block the event loop.
    for name in ("batch", "collection_writer"):
        importlib.import_module(f"aiosollol.engines.dask.{name}")


def _local_cluster(workers: int) -> ServerProcess:
    # Workers call functions of the program, so they use its import path.
    path = os.pathsep.join(each for each in sys.path if each)
    return ServerProcess(
        "dask",
        "aiosollol.engines.dask.cluster",
        ["--workers", str(workers)],
        start_timeout=START_SECONDS,
        environment={"PYTHONPATH": path},
    )
