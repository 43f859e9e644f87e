"""`Deadlines`: late is late, in time is in time, and a cancellation by others is one by others."""

from __future__ import annotations

import asyncio

import pytest

from aiosollol.deadlines import Deadlines

pytestmark = pytest.mark.anyio


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_who_is_late_gets_a_timeout_error() -> None:
    deadlines = Deadlines()
    with pytest.raises(TimeoutError), deadlines.within(0.0):
        await forever()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_who_is_in_time_is_left_alone_and_leaves_no_timer_that_strikes() -> None:
    deadlines = Deadlines()
    for _ in range(3):
        with deadlines.within(0.0):
            pass
    for _ in range(10):
        await asyncio.sleep(0)
    deadlines.close()


async def test_only_the_late_ones_of_many_are_cancelled() -> None:
    deadlines = Deadlines()
    events: list[str] = []
    go_on = asyncio.Event()

    async def work(name: str, seconds: float) -> None:
        try:
            with deadlines.within(seconds):
                await go_on.wait()
            events.append(f"{name} done")
        except TimeoutError:
            events.append(f"{name} late")
            if len(events) == 2:
                go_on.set()

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("a", 60.0), ("b", 0.0), ("c", 60.0), ("d", 0.0)):
            group.create_task(work(name, seconds))
    assert sorted(events) == ["a done", "b late", "c done", "d late"]
    deadlines.close()


async def test_an_earlier_deadline_set_later_still_strikes_first() -> None:
    deadlines = Deadlines()
    with deadlines.within(60.0), pytest.raises(TimeoutError), deadlines.within(0.0):
        await forever()
    deadlines.close()


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    deadlines = Deadlines()
    started = asyncio.Event()

    async def work() -> None:
        with deadlines.within(60.0):
            started.set()
            await forever()

    task = asyncio.ensure_future(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_late_and_cancelled_at_once_is_cancelled() -> None:
    deadlines = Deadlines()

    async def work() -> None:
        with deadlines.within(60.0):
            await forever()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    (deadline,) = deadlines._open
    deadline.expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_an_error_inside_passes_through() -> None:
    deadlines = Deadlines()
    with pytest.raises(KeyError), deadlines.within(60.0):
        raise KeyError
    deadlines.close()
