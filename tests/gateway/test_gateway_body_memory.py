"""The bytes of all requests under way: which wait for room, in which order, and for how long."""

from __future__ import annotations

import asyncio
import random

import pytest

from aiosollol.gateway.middleware.limits import BodyMemory

pytestmark = pytest.mark.anyio

MOST = 100
LONG = 3600.0


class Bodies:
    """Requests that come one after another. let_in: their names, in the order of their turns."""

    def __init__(self) -> None:
        self.memory = BodyMemory()
        self.let_in: list[str] = []

    async def _enter(self, name: str, size: int, seconds: float) -> bool:
        has_room = await self.memory.wait(size, MOST, seconds)
        if has_room:
            self.let_in.append(name)
        return has_room

    async def come(self, name: str, size: int, seconds: float = LONG) -> asyncio.Task[bool]:
        task = asyncio.create_task(self._enter(name, size, seconds))
        await turns()
        return task

    async def leave(self, size: int) -> None:
        self.memory.release(size, MOST)
        await turns()


async def turns() -> None:
    """Let all that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("small", "sizes", "let_in"),
    [
        (0, [50, 50], "ab"),
        (0, [50, 51], "a"),
        (0, [500], "a"),  # one always fits
        (0, [500, 1], "a"),
        (500, [500], "a"),  # the small ones keep no large one out for ever
        (60, [30, 11], "a"),
        (0, [60, 60, 10], "a"),  # the last would fit, and is not let in before the second
    ],
)
async def test_which_are_let_in_at_once(small: int, sizes: list[int], let_in: str) -> None:
    bodies = Bodies()
    bodies.memory.small = small
    tasks = [await bodies.come(name, size) for name, size in zip("abc", sizes, strict=False)]
    assert bodies.let_in == list(let_in)
    assert len(bodies.memory) == len(sizes) - len(let_in)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert len(bodies.memory) == 0
    assert bodies.memory.large == sum(sizes[: len(let_in)])


async def test_room_is_given_in_order() -> None:
    bodies = Bodies()
    tasks = [await bodies.come(name, 60) for name in "abcd"]
    for count in range(1, 5):
        assert bodies.let_in == list("abcd"[:count])
        await bodies.leave(60)
    assert await asyncio.gather(*tasks) == [True] * 4
    assert bodies.memory.large == 0


async def test_leaving_the_line_lets_those_behind_in() -> None:
    bodies = Bodies()
    await bodies.come("a", 60)
    too_large = await bodies.come("b", 90)
    await bodies.come("c", 30)
    assert bodies.let_in == ["a"]
    too_large.cancel()
    await asyncio.wait([too_large])
    await turns()
    assert bodies.let_in == ["a", "c"]
    assert bodies.memory.large == 90


async def test_room_that_comes_with_a_cancellation_is_given_on() -> None:
    bodies = Bodies()
    await bodies.come("a", 60)
    leaving = await bodies.come("b", 60)
    await bodies.come("c", 60)
    bodies.memory.release(60, MOST)  # for b, which has not noticed yet
    leaving.cancel()
    await asyncio.wait([leaving])
    await turns()
    assert bodies.let_in == ["a", "c"]
    assert bodies.memory.large == 60


async def test_patience_ends() -> None:
    bodies = Bodies()
    await bodies.come("a", 60)
    assert await (await bodies.come("b", 60, 0.0)) is False
    assert len(bodies.memory) == 0
    assert bodies.memory.large == 60


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_lost_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    bodies = Bodies()
    tasks: dict[asyncio.Task[bool], int] = {}
    entered: list[int] = []
    for number in range(300):
        size = rng.choice([1, 20, 60, 150])
        tasks[await bodies.come(str(number), size, rng.choice([0.0, LONG]))] = size
        if rng.random() < 0.3:
            rng.choice(list(tasks)).cancel()
        for task in [task for task in tasks if task.done()]:
            size = tasks.pop(task)
            if not task.cancelled() and task.result():
                entered.append(size)
        while entered and rng.random() < 0.6:
            await bodies.leave(entered.pop(rng.randrange(len(entered))))
        assert bodies.memory.large >= sum(entered)
    while tasks or entered:
        for size in entered:
            await bodies.leave(size)
        entered = [tasks[task] for task in tasks if task.done() and await admitted(task)]
        tasks = {task: size for task, size in tasks.items() if not task.done()}
        await turns()
    assert bodies.memory.large == len(bodies.memory) == 0


async def admitted(task: asyncio.Task[bool]) -> bool:
    return not task.cancelled() and await task
