"""The bytes of all requests under way: which wait for room, in which order, and for how long."""

from __future__ import annotations

import asyncio
import random

import pytest

from aiosollol.gateway.middleware.body_memory import BodyMemory

pytestmark = pytest.mark.anyio

MOST = 100
LONG = 3600.0


class Bodies:
    """Requests that come one after another, each of a client of its own unless one is named.

    let_in: their names, in the order of their turns.
    """

    def __init__(self) -> None:
        self.memory = BodyMemory()
        self.let_in: list[str] = []

    async def _enter(self, name: str, size: int, seconds: float, client: str) -> bool:
        has_room = await self.memory.wait(client, size, MOST, seconds)
        if has_room:
            self.let_in.append(name)
        return has_room

    async def come(
        self, name: str, size: int, seconds: float = LONG, *, client: str = ""
    ) -> asyncio.Task[bool]:
        task = asyncio.create_task(self._enter(name, size, seconds, client or name))
        await turns()
        return task

    async def leave(self, client: str, size: int) -> None:
        self.memory.release(client, size, MOST)
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
        await bodies.leave("abcd"[count - 1], 60)
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
    bodies.memory.release("a", 60, MOST)  # for b, which has not noticed yet
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


async def test_one_client_holds_half_at_most() -> None:
    bodies = Bodies()
    for name in ("a1", "a2", "a3"):
        await bodies.come(name, 25, client="a")
    await bodies.come("b1", 25, client="b")
    assert bodies.let_in == ["a1", "a2", "b1"]
    await bodies.leave("a", 25)
    assert bodies.let_in == ["a1", "a2", "b1", "a3"]


async def test_room_goes_to_the_client_that_holds_least() -> None:
    bodies = Bodies()
    for name in ("a1", "b1"):
        await bodies.come(name, 50, client=name[0])
    for name in ("a2", "b2", "c1", "c2"):
        await bodies.come(name, 40, client=name[0])
    assert bodies.let_in == ["a1", "b1"]
    await bodies.leave("b", 50)
    assert bodies.let_in == ["a1", "b1", "b2"]  # it came before c1, and also holds nothing
    await bodies.leave("b", 40)
    assert bodies.let_in == ["a1", "b1", "b2", "c1"]
    await bodies.leave("a", 50)
    assert bodies.let_in == ["a1", "b1", "b2", "c1", "a2"]


async def test_a_client_over_its_share_holds_up_no_other() -> None:
    bodies = Bodies()
    await bodies.come("a1", 45, client="a")
    for number in range(2, 9):
        await bodies.come(f"a{number}", 45, client="a")
    for name in "bcd":
        await bodies.come(name, 18)
    assert bodies.let_in == ["a1", "b", "c", "d"]


@pytest.mark.parametrize(
    ("small", "large", "size", "fits"),
    [
        (0, 0, 60, True),
        (20, 0, 30, True),
        (20, 0, 31, False),
        (60, 0, 1, False),
        (60, 0, 0, True),
        (0, 500, 1, True),
        (2, 50, 10, True),  # an eighth is kept for these
        (2, 50, 11, False),
    ],
)
async def test_small_bodies_of_one_client(small: int, large: int, size: int, fits: bool) -> None:
    memory = BodyMemory()
    assert memory.take_small("a", small, MOST)
    if large:
        assert await memory.wait("b", 1, 2 * large, 0.0)
        assert memory.grow("a", large, small, 0, 4 * large)
    assert memory.take_small("a", size, MOST) is fits
    assert memory.take_small("c", 1, MOST)
    assert memory.held_by("a") == small + large + (size if fits else 0)


async def test_the_end_of_small_bodies_lets_their_client_go_on() -> None:
    bodies = Bodies()
    for _ in range(2):
        assert bodies.memory.take_small("a", 25, MOST)
    await bodies.come("large", 50, client="a")
    assert bodies.let_in == []
    for left in (25, 0):
        bodies.memory.release_small("a", 25, MOST)
        await turns()
        assert bodies.memory.held_by("a") == left + 50 * (not left)
    assert bodies.let_in == ["large"]


async def test_bodies_of_one_client_that_wait_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiosollol.gateway.middleware.body_memory._MOST_WAITING", 0)
    memory = BodyMemory()
    assert await memory.wait("x", MOST, MOST, 0.0)
    tasks = [asyncio.create_task(memory.wait_in_memory("a", 25, MOST, LONG)) for _ in range(2)]
    await turns()
    assert not await memory.wait_in_memory("a", 25, MOST, LONG)
    tasks.append(asyncio.create_task(memory.wait_in_memory("b", 25, MOST, LONG)))
    await turns()
    assert memory.waiting == 75
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert memory.waiting == 0


@pytest.mark.parametrize("seed", range(5))
async def test_nothing_is_lost_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    bodies = Bodies()
    tasks: dict[asyncio.Task[bool], tuple[str, int]] = {}
    entered: list[tuple[str, int]] = []
    for number in range(300):
        client, size = rng.choice("abc"), rng.choice([1, 20, 60, 150])
        seconds = rng.choice([0.0, LONG])
        tasks[await bodies.come(str(number), size, seconds, client=client)] = client, size
        if rng.random() < 0.3:
            rng.choice(list(tasks)).cancel()
        for task in [task for task in tasks if task.done()]:
            body = tasks.pop(task)
            if not task.cancelled() and task.result():
                entered.append(body)
        while entered and rng.random() < 0.6:
            await bodies.leave(*entered.pop(rng.randrange(len(entered))))
        assert bodies.memory.large >= sum(size for _, size in entered)
        for client in "abc":
            held = bodies.memory.held_by(client)
            assert held <= MOST // 2 or [one for one, _ in entered].count(client) <= 1
    while tasks or entered:
        for body in entered:
            await bodies.leave(*body)
        entered = [tasks[task] for task in tasks if task.done() and await admitted(task)]
        tasks = {task: body for task, body in tasks.items() if not task.done()}
        await turns()
    assert bodies.memory.large == len(bodies.memory) == 0
    assert not any(map(bodies.memory.held_by, "abc"))


async def admitted(task: asyncio.Task[bool]) -> bool:
    return not task.cancelled() and await task
