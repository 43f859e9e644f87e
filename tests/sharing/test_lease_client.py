"""`LeaseClient`: slots shared by programs, and leases that are requested and returned."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import anyio
import pytest
import trio.testing
from sharing_programs import NO_LIMIT, ONE, InMemory, Program

from aiosollol.core.leasing.protocol import (
    DEFAULT_SLOTS,
    TERM,
    CoordinatorReply,
    MemberReport,
)
from aiosollol.sharing import (
    INTERVAL,
    URGENT_INTERVAL,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


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
