"""Live requests from end to end: tried again, cut off, sticky, and every account even at last."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import (
    cluster,
    gather,
    vector,
    virtual_time,
)
from passing_faults import PASSING

from aiosollol.core.routing.retry import FIRST_PAUSE, RETRY_FLOOR
from aiosollol.errors import (
    BadRequest,
    NodeTimeout,
    NoNodeAvailable,
    RequestFailed,
    ServerBusy,
)
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


@pytest.mark.parametrize("fault", [*PASSING, Fault.NAN, Fault.TOO_FEW])
async def test_what_fails_on_one_node_is_done_by_another_at_once(fault: Fault) -> None:
    async with cluster(a={}, b={}, strategy="priority") as made:
        await made.warm_up()
        made["a"].fault = fault
        for _ in range(4):
            began = anyio.current_time()
            assert await made.embed() == vector()
            assert anyio.current_time() - began < 0.001
            if fault not in (Fault.NAN, Fault.TOO_FEW):
                assert str(await made.chat())
        assert made.stats()["failed_requests"] >= 1
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.BUSY_503, Fault.RESET])
async def test_the_only_node_is_asked_again_a_little_later(fault: Fault) -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        made["a"].fail_next(fault, 2)
        began = anyio.current_time()
        assert await made.embed() == vector()
        assert 0.0 < anyio.current_time() - began <= FIRST_PAUSE * (1 + 2)
        assert made.stats()["failed_requests"] == 2
        await made.rest()


async def test_after_a_minute_it_is_enough_and_all_attempts_are_listed() -> None:
    async with cluster(a={}) as made:
        await made.warm_up()
        made["a"].fault = Fault.BUSY_503
        began = anyio.current_time()
        with pytest.raises(NoNodeAvailable, match="after 60 s") as caught:
            await made.embed(timeout=300.0)
        assert anyio.current_time() - began == pytest.approx(60.0)
        attempts = caught.value.attempts
        assert {type(each) for each in attempts} == {ServerBusy}
        assert 60.0 / 0.8 <= len(attempts) <= 60.0 / 0.4 + 5
        assert f"({len(attempts)} times)" in str(caught.value)
        assert isinstance(caught.value.__cause__, ServerBusy)
        made["a"].fault = None
        await made.rest()


@pytest.mark.parametrize("retries", [0, 1])
async def test_how_often_is_a_setting(retries: int) -> None:
    async with cluster(a={}, b={}, c={}, max_retries=retries) as made:
        await made.warm_up()
        for name in "abc":
            made[name].fault = Fault.TOO_FEW
        with pytest.raises(NoNodeAvailable) as caught:
            await made.embed()
        assert len(caught.value.attempts) == retries + 1


async def test_no_attempt_begins_after_the_callers_deadline() -> None:
    async with cluster(a={}, b={}, c={}) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = Fault.BUSY_503
            fake.overhead = 0.4
        for timeout in (0.1, 1.0, 3.0):
            began = anyio.current_time()
            with pytest.raises(RequestFailed):
                await made.embed(timeout=timeout)
            assert anyio.current_time() - began <= timeout + 1e-9
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_an_outage_is_not_made_worse_by_retries() -> None:
    async with cluster(a={"slots": 100}, b={"slots": 100}) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = Fault.BUSY_503
        before = sum(fake.requests for fake in made.transports.values())
        results = await gather(*[partial(made.embed, timeout=5.0)] * 200)
        assert all(isinstance(each, RequestFailed) for each in results)
        sent = sum(fake.requests for fake in made.transports.values()) - before
        assert sent <= 200 * 1.2 + RETRY_FLOOR + 2
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


async def test_a_bad_request_gets_one_second_opinion() -> None:
    poison = {"poison": {"arsenic"}}
    async with cluster(a=poison, b=poison, c=poison) as made:
        await made.warm_up()
        before = made.stats()["total_requests"]
        with pytest.raises(BadRequest):
            await made.embed("arsenic")
        assert made.stats()["total_requests"] == before + 2
        assert made.live.calls.second_opinions == 1


async def test_the_time_of_a_call_is_for_all_of_it() -> None:
    async with cluster(a={}, b={}, max_retries=10) as made:
        await made.warm_up()
        for fake in made.transports.values():
            fake.fault = Fault.HANG
        for call in (made.embed, made.chat, made.stream):
            began = anyio.current_time()
            with pytest.raises((NodeTimeout, RequestFailed)):
                await call(timeout=3.0)
            assert anyio.current_time() - began == pytest.approx(3.0, abs=0.01)
        for fake in made.transports.values():
            fake.fault = None
        await made.rest()


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    log = logging.getLogger("aiosollol")
    before = log.level
    yield
    log.setLevel(before)
