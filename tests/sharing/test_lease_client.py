"""Programs that share nodes, in virtual time, with a coordinator in memory."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trio.testing

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.health_monitor import HealthMonitor
from aiosollol.cluster.state import ClusterState
from aiosollol.core.leasing.protocol import (
    DEFAULT_SLOTS,
    TERM,
    CoordinatorReply,
    LeaseCoordinator,
    MemberReport,
)
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.errors import EngineError
from aiosollol.live.model_loader import ModelLoader
from aiosollol.live.node_client import NodeClient
from aiosollol.sharing.lease_client import (
    INTERVAL,
    MOST_RETRY_INTERVAL,
    URGENT_INTERVAL,
    LeaseClient,
)
from aiosollol.testing import FakeModel, FakeTransport

pytestmark = pytest.mark.anyio

MODEL = "nomic-embed-text:latest"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


class InMemory:
    """A coordinator that can be gone, or slow."""

    name = "memory"

    def __init__(self) -> None:
        self.commons = LeaseCoordinator()
        self.is_gone = False
        self.seconds = 0.0
        self.asked: Counter[str] = Counter()
        self.left: list[str] = []
        self.start_seconds = 0.0

    async def start(self) -> None:
        await anyio.sleep(self.start_seconds)

    async def exchange(self, report: MemberReport) -> CoordinatorReply:
        self.asked[report.member] += 1
        await anyio.sleep(self.seconds)
        if self.is_gone:
            raise EngineError("memory", "is gone")
        told = self.commons.exchange(MemberReport.load(report.dump()), anyio.current_time())
        return CoordinatorReply.load(told.dump())

    async def leave(self, member: str) -> None:
        self.left.append(member)
        self.commons.leave(member, anyio.current_time())


class Program:
    """A registry that shares its nodes, and requests that use them."""

    def __init__(
        self,
        coordinator: InMemory,
        name: str,
        *,
        weight: float = 1.0,
        nodes: tuple[Any, ...] = ("10.0.0.1",),
        group: str | None = None,
        machine: str = "here",
    ) -> None:
        self.registry = ClusterState(nodes)
        self.probed: list[str] = []
        self.sharing = LeaseClient(
            self.registry,
            coordinator,
            self.probe,
            member=name,
            group=name if group is None else group,
            weight=weight,
            machine=machine,
            rng=random.Random(0),
        )
        self.done = 0
        self.seconds = 0.0

    async def probe(self, name: str) -> None:
        self.probed.append(name)

    async def use(self, node: str, seconds: float) -> None:
        """One request after another, until cancelled."""
        while True:
            await self.request(node, seconds)

    async def request(self, name: str, seconds: float) -> None:
        node = self.registry[name]
        await node.enter()
        try:
            await anyio.sleep(seconds)
            self.done += 1
            self.seconds += seconds
        finally:
            node.leave(is_live=False)

    @property
    def caps(self) -> dict[str, float]:
        return {node.name: node.cap for node in self.registry}

    @property
    def under_way(self) -> int:
        return sum(node.in_flight for node in self.registry)


ONE = "10.0.0.1:11434"
NO_LIMIT = float("inf")


async def test_a_program_alone_has_every_slot_in_advance() -> None:
    coordinator = InMemory()
    program = Program(coordinator, "a")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(0.01)
        assert program.caps == {ONE: DEFAULT_SLOTS}
        assert program.sharing.stats()["leases"] == {ONE: DEFAULT_SLOTS}
        assert program.sharing.stats()["connected"]
        group.cancel_scope.cancel()
    assert program.caps == {ONE: NO_LIMIT}
    assert coordinator.left == ["a"]
    assert not program.sharing.stats()["connected"]


async def test_an_idle_program_asks_twice_a_second_and_no_request_asks_at_all() -> None:
    coordinator = InMemory()
    program = Program(coordinator, "a")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(0.01)
        group.start_soon(program.use, ONE, 0.001)
        await anyio.sleep(10.0)
        group.cancel_scope.cancel()
    assert program.done > 9000
    assert coordinator.asked["a"] <= 10 / (INTERVAL * 0.9) + 2


@pytest.mark.parametrize("slots", [1, 2, 4])
async def test_slots_are_never_used_twice_and_shared_by_weight(slots: int) -> None:
    coordinator = InMemory()
    coordinator.seconds = 0.002
    rng = random.Random(7)
    nodes = tuple({"url": f"10.0.0.{n}", "max_concurrency": slots} for n in range(4))
    programs = [
        Program(coordinator, name, weight=weight, nodes=nodes)
        for name, weight in [("a", 3.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)]
    ]
    async with anyio.create_task_group() as group:
        for program in programs:
            group.start_soon(program.sharing.run)
        await anyio.sleep(2.0)  # all of them have leases, and no more than that under way
        for program in programs:
            for node in program.registry:
                for _ in range(2 * slots):
                    group.start_soon(program.use, node.name, rng.uniform(0.05, 0.3))
        for _ in range(20):  # until it has settled
            await anyio.sleep(0.5)
        before = [program.seconds for program in programs]
        peak: Counter[str] = Counter()
        for _ in range(1200):
            await anyio.sleep(0.05)
            for name in [node.name for node in programs[0].registry]:
                sum_ = sum(program.registry[name].in_flight for program in programs)
                peak[name] = max(peak[name], sum_)
        used = [program.seconds - start for program, start in zip(programs, before, strict=True)]
        group.cancel_scope.cancel()
    assert max(peak.values()) <= slots
    total = sum(used)
    assert used[0] / total == pytest.approx(0.5, rel=0.1)
    for each in used[1:]:
        assert each / total == pytest.approx(1 / 6, rel=0.1)
    assert total > 0.8 * 60 * 4 * slots  # and the nodes were busy


async def test_ten_members_of_a_group_have_no_more_than_one() -> None:
    coordinator = InMemory()
    many = [Program(coordinator, f"w{n}", group="many") for n in range(10)]
    one = Program(coordinator, "one")
    async with anyio.create_task_group() as group:
        for program in [*many, one]:
            group.start_soon(program.sharing.run)
            for _ in range(4):
                group.start_soon(program.use, ONE, 0.1)
        await anyio.sleep(10.0)
        before = sum(program.done for program in many), one.done
        await anyio.sleep(60.0)
        after = sum(program.done for program in many), one.done
        group.cancel_scope.cancel()
    assert (after[1] - before[1]) == pytest.approx(after[0] - before[0], rel=0.1)


async def test_what_a_dead_program_held_is_free_within_the_term() -> None:
    coordinator = InMemory()
    first, second = Program(coordinator, "first"), Program(coordinator, "second")
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as life:
            coordinator_leave, coordinator.leave = coordinator.leave, _never  # type: ignore[method-assign]
            async with anyio.create_task_group() as dying:
                dying.start_soon(first.sharing.run)
                for _ in range(4):
                    dying.start_soon(first.use, ONE, 0.1)
                await anyio.sleep(1.0)
                life.cancel()
        coordinator.leave = coordinator_leave  # type: ignore[method-assign]
        died = anyio.current_time()
        group.start_soon(second.sharing.run)
        for _ in range(4):
            group.start_soon(second.use, ONE, 0.1)
        await anyio.sleep(0.01)
        assert second.registry[ONE].cap < DEFAULT_SLOTS
        while second.registry[ONE].cap < DEFAULT_SLOTS:
            await anyio.sleep(0.1)
        assert anyio.current_time() - died <= TERM + 2 * INTERVAL
        group.cancel_scope.cancel()


async def _never(member: str) -> None:
    pass


class Recorded(InMemory):
    """A coordinator that knows when it was asked by whom."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at: dict[str, list[float]] = {"a": [], "b": []}

    async def exchange(self, report: MemberReport) -> CoordinatorReply:
        self.asked_at[report.member].append(anyio.current_time())
        return await super().exchange(report)


async def test_a_request_that_waits_for_a_lease_has_it_asked_for_soon() -> None:
    coordinator = Recorded()
    program, other = Program(coordinator, "a"), Program(coordinator, "b")
    async with anyio.create_task_group() as group:
        group.start_soon(other.sharing.run)
        group.start_soon(program.sharing.run)
        await anyio.sleep(2.0)
        asked = coordinator.asked_at["a"]
        for _ in range(10):  # wherever it is between two questions
            await anyio.sleep(0.77)
            before, came = len(asked), anyio.current_time()
            with anyio.move_on_after(0.2):
                async with anyio.create_task_group() as requests:
                    for _ in range(4):
                        requests.start_soon(program.use, ONE, 1.0)
            assert asked[before] <= max(asked[before - 1] + URGENT_INTERVAL, came) + 1e-6
        group.cancel_scope.cancel()


async def test_what_is_to_be_given_back_is_given_back_at_once() -> None:
    coordinator = Recorded()
    program, other = Program(coordinator, "a"), Program(coordinator, "b")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(2.0)
        for seconds in (2.0, 2.0, 2.01, 2.01):
            group.start_soon(program.request, ONE, seconds)
        group.start_soon(other.sharing.run)
        for _ in range(4):
            group.start_soon(other.use, ONE, 1.0)
        await anyio.sleep(1.9)
        assert (program.registry[ONE].cap, program.under_way) == (2, 4)
        ends = anyio.current_time() + 0.1
        await anyio.sleep(0.2)
        assert program.under_way == 0
        assert pytest.approx(ends) in coordinator.asked_at["a"]  # two have ended, two may go on
        group.cancel_scope.cancel()


async def test_without_a_coordinator_it_goes_on_alone_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "aiosollol")
    coordinator = InMemory()
    program, other = Program(coordinator, "a"), Program(coordinator, "b")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        group.start_soon(other.sharing.run)
        await anyio.sleep(2.0)
        assert program.caps == {ONE: 2}
        coordinator.is_gone = True
        await anyio.sleep(TERM - INTERVAL - 1.0)
        assert program.caps == {ONE: 2}  # the lease is good until it ends
        await anyio.sleep(INTERVAL + 1.1)
        assert program.caps == {ONE: NO_LIMIT}
        assert not program.sharing.is_connected
        await anyio.sleep(60.0)
        warned = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warned) == 2  # each once
        assert "memory is gone" in warned[0].getMessage()
        coordinator.is_gone = False
        coordinator.commons = LeaseCoordinator()  # another one, that knows nobody
        await anyio.sleep(MOST_RETRY_INTERVAL * 1.1 + 2.0)
        assert program.caps == {ONE: 2}
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
        assert len(told) == 2
        assert "is back" in told[0]
        group.cancel_scope.cancel()


async def test_a_coordinator_that_was_never_there_is_named_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = InMemory()
    coordinator.is_gone = True
    program = Program(coordinator, "a")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(300.0)
        assert program.caps == {ONE: NO_LIMIT}
        assert len(caplog.records) == 1
        assert 10 <= coordinator.asked["a"] <= 15  # less and less often
        group.cancel_scope.cancel()


async def test_a_coordinator_that_hangs_costs_no_more_than_the_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = InMemory()
    program = Program(coordinator, "a")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(1.0)
        coordinator.seconds = 1e9
        await anyio.sleep(TERM + INTERVAL)
        assert program.caps == {ONE: NO_LIMIT}
        await anyio.sleep(100.0)
        assert len(caplog.records) == 1
        coordinator.seconds = 0.0
        await anyio.sleep(MOST_RETRY_INTERVAL * 1.1 + 10.0)
        assert program.caps == {ONE: DEFAULT_SLOTS}
        group.cancel_scope.cancel()


async def test_how_long_it_takes_to_start_is_no_reason_to_complain(
    caplog: pytest.LogCaptureFixture,
) -> None:
    coordinator = InMemory()
    coordinator.start_seconds = 3 * TERM
    program = Program(coordinator, "a")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(3 * TERM + 0.1)
        assert program.caps == {ONE: DEFAULT_SLOTS}
        assert not caplog.records
        group.cancel_scope.cancel()


async def test_an_answer_that_comes_after_its_lease_ended_is_none() -> None:
    coordinator = InMemory()
    coordinator.seconds = TERM + 1.0
    program = Program(coordinator, "a")
    async with anyio.create_task_group() as group:
        group.start_soon(program.sharing.run)
        await anyio.sleep(TERM + 2.0)
        assert not program.sharing.is_connected
        assert program.caps == {ONE: NO_LIMIT}
        group.cancel_scope.cancel()


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


async def test_a_new_coordinator_is_told_again_what_was_learned() -> None:
    coordinator = InMemory()
    one = Program(coordinator, "one")
    cost = Cost()
    for _ in range(5):
        cost = cost.observe(100.0, 0.25)
    one.registry[ONE].costs[MODEL] = cost
    async with anyio.create_task_group() as group:
        group.start_soon(one.sharing.run)
        await anyio.sleep(2.0)
        coordinator.commons = LeaseCoordinator()
        await anyio.sleep(2.0)
        two = Program(coordinator, "two")
        group.start_soon(two.sharing.run)
        await anyio.sleep(0.1)
        assert MODEL in two.registry[ONE].costs
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
