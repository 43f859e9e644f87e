"""Single texts on their way into lists: their order, those that leave, and those that wait long."""

from __future__ import annotations

import asyncio
from array import array

import pytest

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.stats import CallCounters
from aiosollol.errors import PoolSaturated
from aiosollol.gateway.micro_batching import Gathered, Key, MicroBatcher

pytestmark = pytest.mark.anyio

KEY = Key("m")
LISTS = 2  # under way at once, over one node


class OneNode:
    """What a `MicroBatcher` needs of a pool. A list is answered when `answer` says so, with vectors
    that are the numbers of its texts. lists: all that came."""

    def __init__(self, wait_timeout: float = 3600.0) -> None:
        self.lists: list[list[str]] = []
        self.wait_timeout = wait_timeout
        self.gateway_access = self
        self.calls = CallCounters()
        self._answers: list[asyncio.Event] = []

    @property
    def view(self) -> OneNode:
        return self

    def having(self, model: str) -> list[str]:
        return ["node"]

    async def embed_gathered(
        self, model: str, texts: list[str], *_: object, **__: object
    ) -> Embeddings:
        self.lists.append(texts)
        self._answers.append(asyncio.Event())
        await self._answers[-1].wait()
        return Embeddings(memoryview(array("f", map(float, texts))), 1)

    def answer(self, index: int) -> None:
        self._answers[index].set()


class Gathering:
    """Texts that come at once for one node, to which two lists are under way already."""

    def __init__(self, pool: OneNode) -> None:
        self.pool = pool
        self.gatherer = MicroBatcher(pool, 1e-6, 1)  # type: ignore[arg-type]  # all that it uses
        self.tasks: list[asyncio.Task[Gathered]] = []

    async def _embed(self, text: str) -> Gathered:
        with self.gatherer.enter(KEY):
            return await self.gatherer.embed(KEY, text)

    async def come(self, *texts: int) -> None:
        tasks = [asyncio.create_task(self._embed(str(text))) for text in texts]
        self.tasks += tasks
        while sum(not task.done() for task in self.tasks) > self.counted:
            await asyncio.sleep(0)

    async def begin(self) -> None:
        for index in range(LISTS):
            self.tasks.append(asyncio.create_task(self._embed(str(index))))
            while len(self.pool.lists) <= index:
                await asyncio.sleep(0)

    @property
    def counted(self) -> int:
        return self.gatherer._groups[KEY].under_way

    @property
    def waiting(self) -> list[str]:
        return [each.text for each in self.gatherer._groups[KEY].waiting.values()]

    async def lists(self, count: int) -> list[list[str]]:
        """The lists but for those that were there at first, once there are `count`."""
        while len(self.pool.lists) < LISTS + count:
            await asyncio.sleep(0)
        return self.pool.lists[LISTS:]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.gatherer.aclose()
        assert not self.gatherer._groups


async def test_texts_wait_in_order_and_go_in_lists_of_256() -> None:
    gathering = Gathering(OneNode())
    await gathering.begin()
    await gathering.come(*range(10, 710))
    assert gathering.waiting == [str(text) for text in range(10, 710)]
    for index in range(3):
        gathering.pool.answer(index)
        await gathering.lists(index + 1)
    assert [len(texts) for texts in gathering.pool.lists[LISTS:]] == [256, 256, 188]
    sent = [text for texts in gathering.pool.lists[LISTS:] for text in texts]
    assert sent == [str(text) for text in range(10, 710)]
    for index in range(3, 5):
        gathering.pool.answer(index)
    vectors = [each.vector[0] for each in await asyncio.gather(*gathering.tasks)]
    assert vectors == [0.0, 1.0, *map(float, range(10, 710))]
    await gathering.end()


async def test_a_client_that_leaves_takes_its_text_along() -> None:
    gathering = Gathering(OneNode())
    await gathering.begin()
    await gathering.come(*range(10, 20))
    for task in gathering.tasks[LISTS : LISTS + 9 : 2]:
        task.cancel()
    while len(gathering.waiting) > 5:
        await asyncio.sleep(0)
    assert gathering.waiting == ["11", "13", "15", "17", "19"]
    gathering.pool.answer(0)
    assert await gathering.lists(1) == [["11", "13", "15", "17", "19"]]
    await gathering.end()


async def test_texts_behind_many_that_were_cancelled_are_sent() -> None:
    gathering = Gathering(OneNode())
    await gathering.begin()
    await gathering.come(*range(10, 300))
    for task in gathering.tasks[LISTS : LISTS + 260]:
        task.cancel()
    gathering.pool.answer(0)  # before any of them has noticed
    assert await gathering.lists(1) == [[str(text) for text in range(270, 300)]]
    await gathering.end()


async def test_a_text_that_waits_too_long_is_refused() -> None:
    """Those in no list; those in a list are the pool's business."""
    gathering = Gathering(OneNode(wait_timeout=0.0))
    await gathering.begin()
    await gathering.come(10, 11)
    for task in gathering.tasks[LISTS:]:
        with pytest.raises(
            PoolSaturated, match=r"no node had a place within .* raise wait_timeout"
        ):
            await task
    assert not any(task.done() for task in gathering.tasks[:LISTS])
    assert gathering.waiting == []
    gathering.pool.answer(0)
    assert (await gathering.tasks[0]).vector[0] == 0.0
    await gathering.end()
