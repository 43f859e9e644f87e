"""A worker for batches: a Ray actor with a pool, which is a member of those that share nodes."""

from __future__ import annotations

import asyncio
import pickle
import socket
import time

from aiosollol import __version__
from aiosollol.core.parcels import Partition
from aiosollol.core.sharing import (
    CoordinatorReply,
    MemberReport,
    NodeUse,
    node_id,
    slots_of,
)
from aiosollol.engines.ray_contract import Contract, Greeting
from aiosollol.engines.ray_coordinator import check, find_coordinator
from aiosollol.engines.worker import Look, RemotePool, Terms
from aiosollol.errors import EngineError, SollolError
from aiosollol.sharing import INTERVAL, URGENT_INTERVAL

FIRST_LEASE_SECONDS = 10.0


class WorkerActor:
    """Embeds partitions within the leases that it gets by itself. Its arguments are pickled, so
    that nothing needs to be understood on the way.

    A worker that died begins anew, with the same contract; what it was doing is done again by
    whoever the client gives it to.
    """

    def __init__(self, name: str, contract: bytes) -> None:
        self._name = name
        self._contract: Contract = pickle.loads(contract)
        self._nodes = self._contract.nodes
        self._machine = socket.gethostname()
        self._far: RemotePool | None = None
        self._starting: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._running: dict[int, asyncio.Task[bytes]] = {}
        self._has_lease = asyncio.Event()
        self._look: Look | None = None

    async def greet(self) -> bytes:
        """A pickled `Greeting`, when its nodes have been asked and it has its first lease."""
        await self._started()
        look = self._look
        assert look is not None
        return pickle.dumps(
            Greeting(self._name, __version__, tuple(sorted(look.up)), dict(look.down))
        )

    async def run(self, number: int, order: bytes) -> bytes:
        """A pickled `PartitionResult` or `SollolError`. order: pickled nodes and `Partition`."""
        self._running[number] = task = asyncio.create_task(self._run(order))
        try:
            return await task
        finally:
            self._running.pop(number, None)

    async def stop(self, number: int) -> None:
        """End what `run` does with that number, down to the requests at the nodes."""
        task = self._running.get(number)
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=5.0)

    async def _run(self, order: bytes) -> bytes:
        nodes, partition = pickle.loads(order)
        assert isinstance(partition, Partition)
        try:
            far = await self._started()
            if nodes != self._nodes:
                self._nodes = nodes
                await far.obey(Terms(nodes=nodes))
            return pickle.dumps(await far.embed(partition), protocol=5)
        except SollolError as error:
            return pickle.dumps(error)

    # Its leases.

    async def _started(self) -> RemotePool:
        if self._starting is None or (self._starting.done() and self._starting.exception()):
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)
        assert self._far is not None
        return self._far

    async def _start(self) -> None:
        if self._far is None:
            self._far = RemotePool(self._name, self._contract.settings)
        self._look = await self._far.obey(Terms(nodes=self._nodes))
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(self._far))
        try:
            async with asyncio.timeout(FIRST_LEASE_SECONDS):
                await self._has_lease.wait()
        except TimeoutError:
            raise EngineError("ray", "gave a worker no lease within 10 s") from None

    async def _renew(self, far: RemotePool) -> None:
        """Ask for leases as long as this worker lives. A lease that is not renewed ends by itself
        (`RemotePool`), so whatever fails here is tried again."""
        # Another name for each life: what the one before it held is not known to be free.
        member = f"{self._name} {time.monotonic():.6f}"
        coordinator = find_coordinator()
        slots: dict[str, int] = {}
        while True:
            try:
                look = self._look = await far.obey(Terms())
                answered = await coordinator.exchange.remote(self._report(member, look).dump())
                answer = CoordinatorReply.load(check(answered))
            except Exception:
                await asyncio.sleep(INTERVAL)
                coordinator = find_coordinator()
                continue
            ids = self._ids()
            given = {ids[known]: count for known, count in answer.slots.items() if known in ids}
            await far.obey(Terms(None, given, answer.serial, look.number))
            self._has_lease.set()
            is_lowered = any(count < slots.get(name, 0) for name, count in given.items())
            is_starved = any(count > look.using.get(name, 0) for name, count in look.wants.items())
            slots = given
            await asyncio.sleep(URGENT_INTERVAL if is_lowered or is_starved else INTERVAL)

    def _ids(self) -> dict[str, str]:
        return {node_id(entry.spec, self._machine): entry.spec.name for entry in self._nodes}

    def _report(self, member: str, look: Look) -> MemberReport:
        specs = {entry.spec.name: entry.spec for entry in self._nodes}
        # Slots of a node that it does not reach would be of no use to it.
        nodes = {
            known: NodeUse(slots_of(specs[name]), look.wants.get(name, 0), look.using.get(name, 0))
            for known, name in self._ids().items()
            if name in look.up or look.using.get(name, 0)
        }
        contract = self._contract
        return MemberReport(member, contract.group, contract.weight, look.serial, nodes)
