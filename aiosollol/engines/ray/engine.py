"""Ray: leases of nodes for programs that share them, and workers for batches.

`RayEngine` is a `ports.Engine`, and its `coordinator` a `ports.Coordinator`. Only the sidecar
(`ray.sidecar`), which starts on first use, imports Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import secrets
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import anyio

from aiosollol._version import __version__
from aiosollol.cluster.state import ClusterState
from aiosollol.config.settings import TABLE, Settings
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.leasing.protocol import CoordinatorReply, MemberReport, slots_of
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome
from aiosollol.core.offload.partitions import Partition, PartitionAnswer, WorkerDied
from aiosollol.engines.partition_dispatcher import PartitionDispatcher
from aiosollol.engines.ray.protocol import DONE, Contract, Greeting
from aiosollol.engines.ray.sidecar_client import RayLink
from aiosollol.engines.remote_pool import entries_of
from aiosollol.errors import EngineError, InvalidInput, PoolClosed
from aiosollol.sharing import LeaseClient

log = logging.getLogger("aiosollol")

EXCHANGE_SECONDS = 5.0
"""Timeout of a call to the coordinator: half the term of a lease."""
HIRE_SECONDS = 60.0
MOST_WORKERS = 8
AHEAD = 2
"""Partitions that a worker has at once: while the nodes finish one, they start the next."""
_GUESSED_START_SECONDS = 8.0
IDLE_SECONDS = 30.0
"""Time from the last batch until workers are dismissed: idle workers hold slots too."""


def make_engine(settings: Settings, registry: ClusterState) -> RayEngine:
    """The engine of a pool with `enable_ray`. It starts on first use."""
    return RayEngine(settings, registry)


def make_sharing(
    engine: RayEngine,
    settings: Settings,
    registry: ClusterState,
    probe: Callable[[str], Coroutine[Any, Any, None]],
) -> LeaseClient:
    """The client that keeps the leases of a pool with this engine. See `sharing`."""
    engine.sharing = LeaseClient(
        registry,
        engine.coordinator,
        probe,
        member=engine.member,
        group=engine.group,
        weight=settings.app_weight,
        machine=socket.gethostname(),
    )
    return engine.sharing


class RayCoordinator:
    """The cluster's coordinator, reached through the sidecar."""

    name = "ray"

    def __init__(self, link: RayLink) -> None:
        self._link = link

    async def start(self) -> None:
        """See `ports.Coordinator`."""
        try:
            await self._link.start()
        except PoolClosed as error:
            raise EngineError("ray", str(error)) from error

    async def exchange(self, report: MemberReport) -> CoordinatorReply:
        """See `ports.Coordinator`."""
        try:
            told = await self._link.call("exchange", report.dump(), timeout=EXCHANGE_SECONDS)
            return CoordinatorReply.load(told)
        except (InvalidInput, PoolClosed) as error:
            raise EngineError("ray", str(error)) from error

    async def leave(self, member: str) -> None:
        """See `ports.Coordinator`."""
        if self._link.is_connected:
            with contextlib.suppress(EngineError, PoolClosed):
                await self._link.call("leave", member, timeout=EXCHANGE_SECONDS)


class RayEngine:
    """Computes batches on Ray workers, which share the nodes with this program's own requests.

    member: this program's unique name among the programs that share nodes.
    group: the common name of this program and its workers, which share one weight.
    sharing: the client that keeps its leases, or None.
    """

    name = "ray"

    def __init__(self, settings: Settings, registry: ClusterState) -> None:
        self._settings = settings
        self._registry = registry
        self._link = RayLink(settings.ray_address)
        self.coordinator = RayCoordinator(self._link)
        self.sharing: LeaseClient | None = None
        self.member = f"{settings.app_name or socket.gethostname()} {secrets.token_hex(6)}"
        self.group = settings.app_name or self.member
        self._crew: _Crew | None = None
        self._hiring = asyncio.Lock()
        self._crews = 0
        self._batches = 0
        self._numbers = count()
        self._seconds_to_hire: float | None = None
        self._idling: asyncio.Task[None] | None = None

    @property
    def start_seconds(self) -> float:
        """See `ports.Engine`."""
        if self._hired is not None:
            return 0.0
        if self._seconds_to_hire is None:
            return _GUESSED_START_SECONDS
        start = 0.0 if self._link.is_connected else self._link.seconds_to_start or 0.0
        return start + self._seconds_to_hire

    @property
    def _hired(self) -> _Crew | None:
        """The current workers; None if there are none, or they ended with their sidecar."""
        crew = self._crew
        is_there = crew is not None and self._link.is_connected and crew.life == self._link.life
        return crew if is_there else None

    def stats(self) -> dict[str, Any]:
        """See `ports.Engine`; includes the statistics of `sharing`."""
        info, crew = self._link.info, self._hired
        return {
            "enabled": True,
            "running": crew is not None,
            "dashboard": info.dashboard if info else None,
            "address": info.address if info else None,
            "workers": len(crew.workers) if crew else 0,
            **(self.sharing.stats() if self.sharing else {"connected": False}),
        }

    async def carry(self, job: EngineJob, put: Callable[[int, Embeddings], None]) -> EngineOutcome:
        """See `ports.Engine`."""
        self._batches += 1
        try:
            crew = await self._hire()
            info = self._link.info
            workers = RayWorkers(self._link, self._registry, crew)
            dashboard = info.dashboard if info else None
            return await PartitionDispatcher(workers, job, put, self._numbers, dashboard).run()
        finally:
            self._batches -= 1
            self._dismiss_when_idle()

    async def aclose(self) -> None:
        """See `ports.Engine`."""
        if self._idling is not None:
            self._idling.cancel()
        await self._link.aclose()

    # Workers.

    async def _hire(self) -> _Crew:
        """Start workers if there are none. Raises EngineError."""
        async with self._hiring:
            if self._idling is not None:
                self._idling.cancel()
            if self._hired is not None:
                return self._hired
            await self._link.start()
            began = asyncio.get_running_loop().time()
            self._crews += 1
            name = f"{self.member} worker {self._crews}"
            settings = {key: getattr(self._settings, key) for key in TABLE}
            nodes = entries_of(self._registry)
            contract = Contract(settings, self.group, self._settings.app_weight, nodes)
            slots = sum(slots_of(entry.spec) for entry in nodes)
            most = max(1, min(MOST_WORKERS, slots))
            life = self._link.life
            greetings = await self._link.call(
                "hire", name, most, pickle.dumps(contract), timeout=HIRE_SECONDS
            )
            workers = fit_workers([pickle.loads(each) for each in greetings])
            self._seconds_to_hire = asyncio.get_running_loop().time() - began
            self._crew = _Crew(name, workers, life)
            return self._crew

    def _dismiss_when_idle(self) -> None:
        if self._batches or self._hired is None:
            return
        if self._idling is not None:
            self._idling.cancel()
        self._idling = asyncio.create_task(self._dismiss_later(), name="dismiss Ray's workers")

    async def _dismiss_later(self) -> None:
        await asyncio.sleep(IDLE_SECONDS)
        crew, self._crew = self._crew, None
        if crew is not None and self._link.is_connected:
            with contextlib.suppress(EngineError, PoolClosed):
                await self._link.call("dismiss", crew.name, timeout=EXCHANGE_SECONDS)


class _Crew(NamedTuple):
    """The numbers of workers, and the life of the link that started them."""

    name: str
    workers: tuple[int, ...]
    life: int


class RayWorkers:
    """A `ports.WorkerLink` to the workers of a crew, by their numbers."""

    engine = "ray"

    def __init__(self, link: RayLink, registry: ClusterState, crew: _Crew) -> None:
        self._link = link
        self._registry = registry
        self._crew = crew
        self._rooms = {str(number): AHEAD for number in crew.workers}

    def rooms(self) -> Mapping[str, int]:
        return self._rooms

    async def wait_changed(self) -> None:
        """Never returns: the workers do not change by themselves."""
        await anyio.sleep_forever()

    async def embed(self, worker: str, partition: Partition) -> PartitionAnswer:
        order = pickle.dumps((entries_of(self._registry), partition))
        kind, told = await self._link.call(
            "run", self._crew.name, int(worker), partition.index, order, timeout=None
        )
        if kind == DONE:
            answer: PartitionAnswer = pickle.loads(told)
            return answer
        self._rooms.pop(worker, None)
        return WorkerDied(told.decode())

    async def recover(self, worker: str) -> None:
        # It restarts; until then the others get its partitions.
        await self._link.call("greet", self._crew.name, int(worker), timeout=HIRE_SECONDS)
        self._rooms[worker] = AHEAD


def fit_workers(greetings: Sequence[Greeting]) -> tuple[int, ...]:
    """The numbers of the usable workers. Raises EngineError if there is none."""
    for greeting in greetings:
        if greeting.version != __version__:
            raise EngineError(
                "ray",
                f"has workers with aiosollol {greeting.version}, and this is {__version__}: "
                "install one version everywhere",
            )
    fit = tuple(number for number, greeting in enumerate(greetings) if greeting.up)
    silent = {}
    for greeting in greetings:
        silent.update({} if greeting.up else greeting.down)
    if not fit:
        reasons = "".join(f"\n  {name}: {problem}" for name, problem in silent.items())
        raise EngineError(
            "ray",
            "has no worker that reaches a node; an address such as 127.0.0.1 is the worker's own "
            f"machine, so give nodes addresses that all machines reach{reasons}",
        )
    if len(fit) < len(greetings):
        log.warning(
            "ray: %d of %d workers reach no node and get no work: %s",
            len(greetings) - len(fit),
            len(greetings),
            "; ".join(f"{name}: {problem}" for name, problem in silent.items()),
        )
    return fit
