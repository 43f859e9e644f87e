"""`LeaseLeader`: leases slots to an engine's workers, so that together they keep each node's limit.

Each worker's pool, and the client's own, is a member of one `LeaseBook`. During a batch all of them
use its leases; between batches the workers have none, and the client needs none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from aiosollol.cluster.slots import BATCH_WINDOW
from aiosollol.cluster.state import ClusterState
from aiosollol.core.leasing.book import LeaseBook
from aiosollol.core.offload.partitions import (
    Fitness,
    WorkerState,
    fitness,
    nobody_fit,
)
from aiosollol.engines.remote_pool import (
    LEASE_SECONDS,
    Look,
    NodeEntry,
    Terms,
    entries_of,
)
from aiosollol.errors import EngineError
from aiosollol.sharing import INTERVAL, URGENT_INTERVAL, Renewal

IDLE_SECONDS = 15.0
"""Interval of exchanges with the workers while there is no batch: less than
`dask_worker.FORGOTTEN_SECONDS`."""
FIT_SECONDS = 12.0
"""How long a batch waits for a usable worker."""

GREET_SECONDS = 5.0
"""Time until an unusable worker is checked again."""

PASS_SECONDS = 1.0
"""How long an exchange waits for the slowest worker."""

_PASSES = 3
_SELF = "the client"

log = logging.getLogger("aiosollol")


class LeaseLink(Protocol):
    """The connection to the workers. All methods have a deadline, and raise EngineError."""

    @property
    def scheduler(self) -> str: ...
    async def threads(self) -> Mapping[str, int]: ...
    async def greet(self, worker: str) -> None: ...
    async def tell(self, worker: str, terms: Terms) -> Look | None: ...


class _Worker:
    """The state of a worker.

    told: the nodes it was sent.
    slots, serial: its newest lease, which expires at `until`.
    is_asked: whether an exchange with it is in progress.
    greet_at: when to try again to prepare it.
    """

    __slots__ = (
        "greet_at",
        "is_asked",
        "is_greeted",
        "look",
        "problem",
        "serial",
        "slots",
        "threads",
        "told",
        "until",
    )

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.greet_at = -math.inf
        self.is_asked = False
        self.is_greeted = False
        self.problem = ""
        self.until = 0.0
        self.look: Look | None = None
        self.told: tuple[NodeEntry, ...] | None = None
        self.slots: Mapping[str, int] | None = None
        self.serial = 0

    @property
    def is_starved(self) -> bool:
        """Whether it wants slots and has none."""
        has_any = self.slots is not None and any(self.slots.values())
        return self.look is not None and any(self.look.wants.values()) and not has_any


class LeaseLeader:
    """Leases slots to the workers of one engine, which runs `run` as a task until it cancels it.

    registry: the client's nodes.
    """

    def __init__(self, engine: str, link: LeaseLink, registry: ClusterState) -> None:
        self._engine = engine
        self._link = link
        self._registry = registry
        self.clock = registry.clock
        self._book = LeaseBook(term=LEASE_SECONDS)
        self._workers: dict[str, _Worker] = {}
        self._batches = 0
        self._is_lending = False
        self._serial = 0
        self._is_unsettled = False
        self._is_over = False
        self._renewal = Renewal()
        self._changed = anyio.Event()
        self._complaints: set[str] = set()

    @property
    def workers(self) -> list[WorkerState]:
        """All known workers and their states."""
        return [
            WorkerState(
                name,
                each.threads,
                each.problem,
                None if each.look is None else each.look.up,
                {} if each.look is None else each.look.down,
            )
            for name, each in self._workers.items()
        ]

    @property
    def capacities(self) -> dict[str, int]:
        """The known limit of this program's requests at once, by node."""
        return {
            node.name: int(min(node.spec.max_concurrency or BATCH_WINDOW, node.share))
            for node in self._registry
        }

    async def run(self) -> None:
        """Exchange with the workers periodically, until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                await self._renewal.run(partial(self._round, group))
        finally:
            self._is_over = True
            self._changed.set()
            self._lend(False)

    @property
    def _interval(self) -> float:
        if not (self._batches or self._is_lending):
            return IDLE_SECONDS
        is_starved = any(each.is_starved for each in self._workers.values())
        return URGENT_INTERVAL if is_starved else INTERVAL

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """A context in which the workers have leases."""
        self._batches += 1
        self.wake()
        try:
            yield
        finally:
            self._batches -= 1
            self.wake()

    def wake(self) -> None:
        """Exchange with the workers now; once more if an exchange is in progress."""
        self._renewal.wake()

    async def wait_changed(self) -> None:
        """Return after the next exchange. Raises EngineError if this is closed."""
        if not self._is_over:
            await self._changed.wait()
        if self._is_over:
            raise EngineError(self._engine, "was closed")

    async def wait_fit(self, nodes: Collection[str]) -> Fitness:
        """The workers that reach any of `nodes`, at least one.

        Waits up to 12 s for the state of all workers. Logs one warning for each unusable one.

        Raises EngineError if there is none.
        """
        found = fitness(self.workers, nodes)
        with anyio.move_on_after(FIT_SECONDS):
            while True:
                await self.wait_changed()  # at least once: the known state may be old
                found = fitness(self.workers, nodes)
                if found.is_final and (found.fit or found.unfit):
                    break
        if not found.fit:
            raise nobody_fit(self._engine, self._link.scheduler, found)
        for name, why in found.unfit.items():
            if why not in self._complaints:
                self._complaints.add(why)
                log.warning("%s: worker %s is not used: %s", self._engine, name, why)
        return found

    # One exchange.

    async def _round(self, group: TaskGroup) -> float:
        """Exchange with the workers; return the seconds until the next exchange."""
        try:
            self._follow_workers(await self._link.threads())
        except EngineError as error:  # then known workers count as present until their leases end
            log.debug("%s", error)
        if self._batches:
            self._lend(True)
        for _ in range(_PASSES):
            self._is_unsettled = False
            if self._is_lending:
                self._lead_self()
            await self._exchange_with_all(group)
            if not self._is_unsettled:
                break
        if self._is_lending:
            self._lead_self()
            if not self._batches and not self._holders():
                self._lend(False)
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        return self._interval

    async def _exchange_with_all(self, group: TaskGroup) -> None:
        """One exchange with each worker, not waiting long for slow ones."""
        left = {name for name, each in self._workers.items() if not each.is_asked}
        is_done = anyio.Event()

        async def exchange(name: str) -> None:
            worker = self._workers[name]
            worker.is_asked = True
            await self._exchange(name, worker)
            worker.is_asked = False
            left.discard(name)
            if not left:
                is_done.set()

        for name in list(left):
            group.start_soon(exchange, name)
        if left:
            with anyio.move_on_after(PASS_SECONDS):
                await is_done.wait()

    def _follow_workers(self, threads: Mapping[str, int]) -> None:
        now = self._registry.clock()
        for name in [each for each in self._workers if each not in threads]:
            # It has lost its connection to the scheduler, and so it exits at once.
            del self._workers[name]
            self._book.leave(name, now)
        for name, count in threads.items():
            if name not in self._workers:
                self._workers[name] = _Worker(count)
        self._book.expire(now)

    def _holders(self) -> list[str]:
        """The workers that may still send requests."""
        now = self._registry.clock()
        return [
            name
            for name, each in self._workers.items()
            if each.until > now
            and (each.look is None or each.look.serial < each.serial or each.look.using)
        ]

    async def _exchange(self, name: str, worker: _Worker) -> None:
        """Send a worker its terms, and receive its needs. Never raises."""
        try:
            if not worker.is_greeted:
                if self.clock() < worker.greet_at:
                    return
                worker.greet_at = self.clock() + GREET_SECONDS
                await self._link.greet(name)
                worker.is_greeted = True
            nodes = entries_of(self._registry)
            terms = Terms(
                nodes if nodes != worker.told else None,
                worker.slots,
                worker.serial,
                0 if worker.look is None else worker.look.number,
            )
            look = await self._link.tell(name, terms)
            if look is None:  # it no longer has our pool
                worker.is_greeted = False
                worker.told = None
                return
        except EngineError as error:
            worker.problem = error.detail.removeprefix(f"worker {name} ")
            return
        if look.number == 1 and terms.nodes is None:  # it has restarted, and knows no nodes
            worker.told = None
            self._is_unsettled = True
            return
        worker.problem, worker.told, worker.look = "", nodes, look
        if self._workers.get(name) is worker:
            self._renew(name, worker, look)

    def _renew(self, name: str, worker: _Worker, look: Look) -> None:
        """Compute the next lease of a worker from its report."""
        before = worker.slots
        if not self._batches:
            if before is not None and any(before.values()):
                worker.slots, worker.serial = {}, max(worker.serial, look.serial) + 1
                self._is_unsettled = True
            elif not look.using:
                self._book.leave(name, self._registry.clock())
            return
        capacities = self.capacities
        lease = self._book.ask(
            name,
            wants={node: count for node, count in look.wants.items() if node in capacities},
            using={node: count for node, count in look.using.items() if node in capacities},
            serial=look.serial,
            nodes={node: slots for node, slots in capacities.items() if node in look.up},
            now=self._registry.clock(),
        )
        worker.slots, worker.serial, worker.until = lease.slots, lease.serial, lease.until
        if before is None or dict(before) != dict(lease.slots):
            self._is_unsettled = True

    # The client itself.

    def _lead_self(self) -> None:
        usage = {node.name: (node.in_flight, node.wanted) for node in self._registry}
        lease = self._book.ask(
            _SELF,
            using={name: using for name, (using, _) in usage.items() if using},
            wants={name: wants for name, (_, wants) in usage.items() if wants},
            serial=self._serial,
            nodes=self.capacities,
            now=self._registry.clock(),
        )
        self._serial = lease.serial
        looks = [each.look for each in self._workers.values() if each.look is not None]
        nodes = self._book.statistics().nodes
        for node in self._registry:
            members = nodes[node.name].members if node.name in nodes else {}
            node.lend(
                lease.slots.get(node.name, 0),
                using=sum(look.using.get(node.name, 0) for look in looks),
                wants=sum(look.wants.get(node.name, 0) for look in looks),
                lent=sum(each.held for member, each in members.items() if member != _SELF),
            )

    def _lend(self, is_lending: bool) -> None:
        """Turn the lease of the client's own requests on or off."""
        if is_lending == self._is_lending:
            return
        self._is_lending = is_lending
        if not is_lending:
            self._book.leave(_SELF, self._registry.clock())
            for node in self._registry:
                node.lend(None)
