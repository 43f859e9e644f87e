"""`Deadlines`: who is late is told so, who is in time is not, and one timer does for all."""

from __future__ import annotations

import asyncio
import time

import pytest

from aiosollol.net.primitives import Deadlines

pytestmark = pytest.mark.anyio


class Task:
    """Something that is due `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds
        self.told = 0

    def expire(self) -> None:
        self.told += 1


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_is_late_is_told_once() -> None:
    deadlines = Deadlines()
    task = Task(0.0)
    deadlines.add(task)
    assert not task.told, "not before the loop has had a turn"
    await turns()
    assert task.told == 1
    assert "0 open" in repr(deadlines)
    deadlines.close()


async def test_who_is_in_time_is_left_alone_and_leaves_no_timer_that_strikes() -> None:
    deadlines = Deadlines()
    tasks = [Task(0.0) for _ in range(3)]
    for task in tasks:
        deadlines.add(task)
        deadlines.discard(task)
        deadlines.discard(task)
    await turns()
    assert not any(task.told for task in tasks)
    assert deadlines._timer is None


async def test_only_the_late_ones_of_many_are_told() -> None:
    deadlines = Deadlines()
    late, early = [Task(0.0) for _ in range(3)], [Task(60.0) for _ in range(3)]
    for pair in zip(early, late, strict=True):
        for task in pair:
            deadlines.add(task)
    await turns()
    assert [task.told for task in late] == [1, 1, 1]
    assert [task.told for task in early] == [0, 0, 0]
    assert "3 open" in repr(deadlines)
    deadlines.close()
    assert deadlines._timer is None


async def test_many_have_one_timer_and_an_earlier_one_moves_it() -> None:
    deadlines = Deadlines()
    first = Task(60.0)
    deadlines.add(first)
    timer = deadlines._timer
    deadlines.add(Task(90.0))
    assert deadlines._timer is timer
    deadlines.add(Task(30.0))
    assert timer is not None
    assert timer.cancelled()
    assert deadlines._timer is not timer
    deadlines.close()


async def test_who_is_told_may_add_and_discard() -> None:
    deadlines = Deadlines()
    second = Task(0.0)

    class Adding(Task):
        def expire(self) -> None:
            super().expire()
            deadlines.discard(self)
            deadlines.add(second)

    first = Adding(0.0)
    deadlines.add(first)
    await turns()
    assert (first.told, second.told) == (1, 1)
    deadlines.close()


async def test_closed_tells_nobody() -> None:
    deadlines = Deadlines()
    task = Task(0.0)
    deadlines.add(task)
    deadlines.close()
    deadlines.close()
    await turns()
    assert not task.told
