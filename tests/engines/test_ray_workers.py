"""Ray's workers without Ray: their leases, their nodes and their end."""

from __future__ import annotations

import asyncio
import pickle
import sys
from typing import Any

import pytest

from aiosollol import __version__
from aiosollol.config.settings import TABLE, Settings
from aiosollol.core.leasing.protocol import LeaseCoordinator
from aiosollol.core.node import NodeSpec
from aiosollol.core.offload.partitions import Partition
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.engines.ray import (
    coordinator as ray_coordinator,
)
from aiosollol.engines.ray import (
    workers,
)
from aiosollol.engines.ray.coordinator import CoordinatorActor
from aiosollol.engines.ray.protocol import Contract, Greeting
from aiosollol.engines.remote_pool import NodeEntry
from aiosollol.errors import SollolError
from aiosollol.testing import FakeModel, FakeOllama, Fault, fake_vector

pytestmark = pytest.mark.anyio
MODEL = FakeModel("nomic-embed-text", dim=4)
NAME = "nomic-embed-text"


class Remote:
    """A method of an actor that is called right here."""

    def __init__(self, method: Any) -> None:
        self._method = method

    async def remote(self, *arguments: Any) -> Any:
        return self._method(*arguments)


class Handle:
    def __init__(self, actor: CoordinatorActor) -> None:
        self.exchange = Remote(actor.exchange)


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> CoordinatorActor:
    actor = CoordinatorActor()
    monkeypatch.setattr(workers, "find_coordinator", lambda: Handle(actor))
    return actor


def contract(*urls: str) -> bytes:
    settings = {key: getattr(Settings(), key) for key in TABLE}
    nodes = tuple(NodeEntry(NodeSpec(url, max_concurrency=2)) for url in urls)
    return pickle.dumps(Contract(settings, "group", 1.0, nodes))


def order(urls: list[str], texts: list[str]) -> bytes:
    nodes = tuple(NodeEntry(NodeSpec(url, max_concurrency=2)) for url in urls)
    partition = Partition(0, EmbedSettings(model=NAME), texts, PlanOptions())
    return pickle.dumps((nodes, partition))


async def test_a_worker_embeds_within_its_leases(coordinator: CoordinatorActor) -> None:
    texts = [f"text {n}" for n in range(300)]
    async with FakeOllama(models=[MODEL]) as node:
        worker = workers.WorkerActor("w", contract(node.url))
        try:
            greeted: Greeting = pickle.loads(await worker.greet())
            assert (greeted.name, greeted.version) == ("w", __version__)
            assert len(greeted.up) == 1
            result = pickle.loads(await worker.run(1, order([node.url], texts)))
            assert bytes(result.vectors) == b"".join(
                fake_vector(MODEL.digest, text, 4) for text in texts
            )
            assert node.max_in_flight <= 2
            statistics = coordinator._commons.statistics(0.0)
            assert [group.name for group in statistics.groups] == ["group"]
        finally:
            await close(worker)


async def test_a_worker_learns_of_nodes_with_its_orders(coordinator: CoordinatorActor) -> None:
    async with FakeOllama(models=[MODEL]) as one, FakeOllama(models=[MODEL]) as two:
        worker = workers.WorkerActor("w", contract(one.url))
        try:
            await worker.greet()
            result = pickle.loads(await worker.run(1, order([two.url], ["a", "b"])))
            assert result.count == 2
            assert one.requests == 0 < two.requests
        finally:
            await close(worker)


async def test_a_worker_stops_what_it_is_told_to(coordinator: CoordinatorActor) -> None:
    async with FakeOllama(models=[MODEL]) as node:
        worker = workers.WorkerActor("w", contract(node.url))
        try:
            await worker.run(
                1, order([node.url], ["a"])
            )  # loads the model; nothing cancels the load
            node.fault = Fault.HANG
            run = asyncio.create_task(worker.run(7, order([node.url], ["a"])))
            while not node.in_flight:
                await asyncio.sleep(0.001)
            await worker.stop(7)
            with pytest.raises(asyncio.CancelledError):
                await run
            while node.in_flight:
                await asyncio.sleep(0.001)
            await worker.stop(8)  # of which it knows nothing
        finally:
            await close(worker)


async def test_a_worker_whose_nodes_all_refuse_says_so(
    coordinator: CoordinatorActor, unused_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_port}"
    worker = workers.WorkerActor("w", contract(url))
    try:
        greeted: Greeting = pickle.loads(await worker.greet())
        assert greeted.up == ()
        assert list(greeted.down) == [f"127.0.0.1:{unused_port}"]
        result = pickle.loads(await worker.run(1, order([url], ["a"])))
        assert isinstance(result, SollolError)
    finally:
        await close(worker)


async def close(worker: workers.WorkerActor) -> None:
    """What Ray does by ending its process."""
    for task in (worker._renewing, worker._starting):
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
    if worker._far is not None:
        await worker._far.aclose()


def test_nothing_here_has_loaded_ray() -> None:
    assert "ray" not in sys.modules
    assert ray_coordinator.ACTOR_NAME == "aiosollol-coordinator"
    assert LeaseCoordinator().members is not None
