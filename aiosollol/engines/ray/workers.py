"""Workers for batches: Ray actors with a remote pool each, and the group of them of a program."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import time
from importlib import import_module
from typing import Any

from aiosollol._version import __version__
from aiosollol.core.leasing.protocol import (
    CoordinatorReply,
    MemberReport,
    NodeUse,
    node_id,
    slots_of,
)
from aiosollol.core.offload.partitions import Partition
from aiosollol.engines.ray.coordinator import check, find_coordinator
from aiosollol.engines.ray.protocol import DONE, LOST, Contract, Greeting
from aiosollol.engines.remote_pool import Look, RemotePool, Terms
from aiosollol.errors import EngineError, SollolError
from aiosollol.sharing import INTERVAL, URGENT_INTERVAL

FIRST_LEASE_SECONDS = 10.0


class WorkerActor:
    """Embeds partitions within the leases that it requests itself. Its arguments are pickled, so
    that the processes in between need not understand them.

    After a crash a worker restarts with the same contract; the client sends its partitions again.
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
        """A pickled `Greeting`, once its nodes were queried and it has its first lease."""
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
        """Cancel the `run` with this number, including its requests on the nodes."""
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
            raise EngineError("ray", "did not give a worker a lease within 10 s") from None

    async def _renew(self, far: RemotePool) -> None:
        """Renew the lease as long as this worker lives. An unrenewed lease expires by itself
        (`RemotePool`), so every failure here is retried."""
        # A new name after each restart: the slots of the previous one may still be in use.
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
        # It cannot use slots of a node that it does not reach.
        nodes = {
            known: NodeUse(slots_of(specs[name]), look.wants.get(name, 0), look.using.get(name, 0))
            for known, name in self._ids().items()
            if name in look.up or look.using.get(name, 0)
        }
        contract = self._contract
        return MemberReport(member, contract.group, contract.weight, look.serial, nodes)


GREET_SECONDS = 45.0
"""Time for workers to start: Python, this library, and a query to the nodes."""

_LOOK_SECONDS = 0.2


class WorkerGroup:
    """Workers that live until they are dismissed, or the sidecar ends. They start slowly."""

    def __init__(self, name: str, most: int, contract: bytes) -> None:
        ray: Any = import_module("ray")
        cores = int(ray.cluster_resources().get("CPU", 1))
        actor = ray.remote(WorkerActor).options(
            # They wait for nodes most of the time: a core reserved for each would be wasted, and
            # two programs would wait for each other's cores.
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=100,
            scheduling_strategy="SPREAD",
        )
        count = max(1, min(most, cores))
        names = [f"{name}-{number}" for number in range(1, count + 1)]
        self._actors: list[Any] = [actor.remote(each, contract) for each in names]
        self._stops: set[asyncio.Future[Any]] = set()

    async def greetings(self) -> list[bytes]:
        """The greeting of each worker after its start. Raises EngineError, and Ray's errors."""
        try:
            async with asyncio.timeout(GREET_SECONDS):
                return list(await asyncio.gather(*(one.greet.remote() for one in self._actors)))
        except TimeoutError:
            problem = f"did not start its workers within {GREET_SECONDS:g} s; is the cluster busy?"
            raise EngineError("ray", problem) from None

    async def greet(self, worker: int) -> bytes:
        """The greeting of a worker after it has restarted."""
        from ray.exceptions import ActorUnavailableError

        while True:
            try:
                return bytes(await self._actors[worker].greet.remote())
            except ActorUnavailableError:
                await asyncio.sleep(_LOOK_SECONDS)

    async def run(self, worker: int, number: int, order: bytes) -> tuple[str, bytes]:
        """(DONE, result), or (LOST, why) if the worker died; it restarts then."""
        from ray.exceptions import RayActorError

        actor = self._actors[worker]
        try:
            return DONE, await actor.run.remote(number, order)
        except RayActorError as error:
            return LOST, " ".join(str(error).split())[:300].encode()
        except asyncio.CancelledError:
            # Ray's own cancellation depends on the task's state; this stops the requests on nodes.
            stop = asyncio.ensure_future(_quietly(actor.stop.remote(number)))
            self._stops.add(stop)
            stop.add_done_callback(self._stops.discard)
            raise

    async def aclose(self) -> None:
        """Kill the workers, with all that they run."""
        ray: Any = import_module("ray")
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(Exception):  # it, or the cluster, has ended already
                ray.kill(actor)


async def _quietly(work: Any) -> None:
    with contextlib.suppress(Exception):  # a dead worker has stopped
        await work
