"""`LeaseClient` with a coordinator that is missing, slow, or replaced."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
import trio.testing
from sharing_programs import MODEL, NO_LIMIT, ONE, InMemory, Program

from aiosollol.core.leasing.protocol import (
    DEFAULT_SLOTS,
    TERM,
    LeaseCoordinator,
)
from aiosollol.core.scheduling.cost import Cost
from aiosollol.sharing import (
    INTERVAL,
    MOST_RETRY_INTERVAL,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


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
        coordinator.commons = LeaseCoordinator()  # a new one, which knows no client
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
