"""What programs learn from each other: requests, costs and nodes; and batches that share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trio.testing
from sharing_programs import MODEL, ONE, InMemory, Program

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.node_client import NodeClient
from aiosollol.testing import FakeModel, FakeTransport

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


async def test_what_workers_of_a_program_do_elsewhere_counts_as_its_own() -> None:
    coordinator = InMemory()
    one, two = Program(coordinator, "one"), Program(coordinator, "two")
    async with anyio.create_task_group() as group:
        group.start_soon(one.sharing.run)
        group.start_soon(two.sharing.run)
        await anyio.sleep(2.0)
        node = one.registry[ONE]
        node.lend(0, using=2, wants=4)
        for _ in range(4):
            group.start_soon(two.use, ONE, 0.1)
        await anyio.sleep(2.0)
        statistics = coordinator.commons.statistics(anyio.current_time())
        assert statistics.nodes[ONE].members["one"].wants == 4
        assert (node.share, node.cap) == (2, 0)
        assert two.registry[ONE].cap == 2
        node.lend(None)
        await anyio.sleep(2.0)
        assert two.registry[ONE].cap == 4
        group.cancel_scope.cancel()


async def test_costs_of_others_are_taken_where_nothing_is_known() -> None:
    coordinator = InMemory()
    one, two = Program(coordinator, "one"), Program(coordinator, "two")
    cost = Cost()
    for _ in range(5):
        cost = cost.observe(100.0, 0.25)
    one.registry[ONE].costs[MODEL] = cost
    async with anyio.create_task_group() as group:
        group.start_soon(one.sharing.run)
        group.start_soon(two.sharing.run)
        await anyio.sleep(2.0)
        taken = two.registry[ONE].costs[MODEL]
        assert taken.seconds(100.0) == pytest.approx(cost.seconds(100.0))
        assert taken.observations == 1
        # What it took it does not tell as its own, and its own answer replaces it.
        assert two.sharing._own_costs(two.sharing._names()) == {}
        two.registry[ONE].costs[MODEL] = taken.observe(100.0, 1.0)
        assert two.registry[ONE].costs[MODEL].seconds(100.0) == pytest.approx(1.0, rel=0.05)
        await anyio.sleep(1.0)
        assert one.registry[ONE].costs[MODEL] is cost  # it knows better
        group.cancel_scope.cancel()


async def test_a_node_that_others_find_down_is_asked_once_and_not_taken_for_down() -> None:
    coordinator = InMemory()
    one, two = Program(coordinator, "one"), Program(coordinator, "two")
    from aiosollol.core.node_transitions import ProbeFailed
    from aiosollol.errors import NodeUnreachable

    async with anyio.create_task_group() as group:
        group.start_soon(one.sharing.run)
        group.start_soon(two.sharing.run)
        await anyio.sleep(1.0)
        for _ in range(3):
            one.registry.apply(ONE, ProbeFailed(NodeUnreachable(ONE, "refused")))
        assert one.registry[ONE].is_down
        await anyio.sleep(5.0)
        assert two.probed == [ONE]
        assert not two.registry[ONE].is_down
        group.cancel_scope.cancel()


async def test_nodes_that_come_and_go_are_leased_as_they_are() -> None:
    coordinator = InMemory()
    one, two = Program(coordinator, "one"), Program(coordinator, "two", nodes=("10.0.0.2",))
    async with anyio.create_task_group() as group:
        group.start_soon(one.sharing.run)
        group.start_soon(two.sharing.run)
        await anyio.sleep(1.0)
        assert one.caps == {ONE: 4}
        assert one.sharing.stats()["nodes_elsewhere"] == ["10.0.0.2:11434"]
        one.registry.add("10.0.0.2")
        await anyio.sleep(2.0)
        assert one.caps == {ONE: 4, "10.0.0.2:11434": 2}
        one.registry.remove("10.0.0.2:11434")
        await anyio.sleep(2.0)
        assert two.caps == {"10.0.0.2:11434": 4}
        group.cancel_scope.cancel()


async def test_loopback_on_two_machines_is_two_nodes() -> None:
    coordinator = InMemory()
    nodes = ("127.0.0.1",)
    one = Program(coordinator, "one", nodes=nodes, machine="a")
    two = Program(coordinator, "two", nodes=nodes, machine="b")
    three = Program(coordinator, "three", nodes=nodes, machine="b")
    async with anyio.create_task_group() as group:
        for program in (one, two, three):
            group.start_soon(program.sharing.run)
        await anyio.sleep(2.0)
        caps = [next(iter(each.caps.values())) for each in (one, two, three)]
        assert caps == [4, 2, 2]
        group.cancel_scope.cancel()


class Cluster:
    """Two nodes, and programs that embed batch after batch on them."""

    def __init__(self) -> None:
        self.nodes = {
            name: FakeTransport(
                name, models=[FakeModel("nomic-embed-text", dim=4)], seconds_per_item=0.01, slots=4
            )
            for name in "ab"
        }

    async def work(self, program: Program, done: Counter[str], name: str) -> None:
        registry = program.registry
        monitor = HealthMonitor(registry, self.nodes.__getitem__)
        roster = Eligibility(registry, monitor.probe)
        await roster.probe_all()
        texts = [f"passage {index:06d}" for index in range(400)]
        async with anyio.create_task_group() as group:

            async def run(work: Any) -> None:
                await work

            loads = ModelLoader(lambda work, name: group.start_soon(run, work))
            exchange = NodeClient(registry, self.nodes.__getitem__, loads)
            carriage = EngineBatches(registry, {}, 1000)
            batches = BatchRunner(registry, exchange, roster, carriage, 60.0)
            settings = EmbedSettings(model="nomic-embed-text")

            def count(settled: int, of: int) -> None:
                done[name] += settled - seen[0]
                seen[0] = settled % of

            while True:
                seen = [0]
                await batches.embed(settings, texts, {}, PlanOptions(), count, None, "local")


def _specs() -> Iterator[dict[str, Any]]:
    for number, name in enumerate("ab"):
        yield {"url": f"10.0.0.{number}", "name": name, "max_concurrency": 2}


async def test_batches_of_four_programs_share_by_weight() -> None:
    coordinator, cluster = InMemory(), Cluster()
    weights = {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    done: Counter[str] = Counter()
    async with anyio.create_task_group() as group:
        for name, weight in weights.items():
            program = Program(coordinator, name, weight=weight, nodes=tuple(_specs()))
            group.start_soon(program.sharing.run)
            group.start_soon(cluster.work, program, done, name)
        await anyio.sleep(15.0)
        before = Counter(done)
        await anyio.sleep(90.0)
        group.cancel_scope.cancel()
    shares = {name: done[name] - before[name] for name in weights}
    total = sum(shares.values())
    assert shares["a"] / total == pytest.approx(0.5, rel=0.1)
    for name in "bcd":
        assert shares[name] / total == pytest.approx(1 / 6, rel=0.1)
