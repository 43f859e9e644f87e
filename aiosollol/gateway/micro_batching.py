"""Texts that come one by one, many at a time, gathered into lists: fewer requests, as many vectors.

A server serves an embedding model one text after another, so of many single requests at once all
but one or two wait. In a list they wait as well, but cost one request together. Nobody alone waits:
it begins only when more are under way than the nodes can be busy with.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from copy import copy
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.routing.wait_queue import saturated
from aiosollol.errors import NodeError, PoolClosed, RequestFailed, SollolError

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool

_MOST = 256  # texts in one list
_ONE_REQUEST = 32
"""Texts that are sent to one node as they are: a batch of 12 took 1 ms of work more. As many lists
as the nodes can do are under way, so that all have some. What is longer is planned and spread."""


class Key(NamedTuple):
    """What texts must have in common to be in one list."""

    model: str
    dimensions: int | None = None
    truncate: bool | None = None


class Gathered(NamedTuple):
    """One vector out of a list. tokens: of its text, as estimated. nodes: who made the list's."""

    vector: Vector
    tokens: int
    nodes: str


class _Waiting(NamedTuple):
    text: str
    done: asyncio.Future[Gathered]
    context: Context
    came: float


class _Group:
    """The texts under way for one key.

    waiting: those in no list yet, in the order in which they came; a client that leaves takes its
    text out of the middle. timer: sends them. watch: ends the wait of those that came first.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: OrderedDict[asyncio.Future[Gathered], _Waiting] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None
        self.watch: asyncio.TimerHandle | None = None
        self.lists: set[asyncio.Task[None]] = set()


class MicroBatcher:
    """Makes lists of texts. seconds: how long the first of a list waits for others; 0 never does.

    above: how many texts per node are to be under way before it begins.
    """

    def __init__(self, pool: OllamaPool, seconds: float, above: int) -> None:
        self._pool = pool
        self._seconds = seconds
        self._above = above
        self._groups: dict[Key, _Group] = {}
        self._is_closed = False

    @contextmanager
    def enter(self, key: Key) -> Iterator[bool]:
        """Count a text as under way. True if it is worth while to gather it."""
        group = self._groups.setdefault(key, _Group())
        group.under_way += 1
        try:
            yield self._seconds > 0 and group.under_way > self._above * self._nodes(key.model)
        finally:
            group.under_way -= 1
            if not group.under_way:
                del self._groups[key]
                if group.watch is not None:
                    group.watch.cancel()

    async def embed(self, key: Key, text: str) -> Gathered:
        """The vector of a text, for which `enter` was called. Raises SollolError."""
        if self._is_closed:
            raise PoolClosed("the gateway is being closed")
        group = self._groups[key]
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Gathered] = loop.create_future()
        group.waiting[done] = _Waiting(text, done, copy_context(), loop.time())
        if len(group.waiting) >= _MOST:
            self._send(key, group)
        elif group.timer is None:
            self._wait(key, group)
        if group.watch is None:
            seconds = self._pool.gateway_access.wait_timeout
            group.watch = loop.call_later(seconds, self._give_up, group)
        try:
            return await done
        finally:
            group.waiting.pop(done, None)

    async def aclose(self) -> None:
        """End what is under way."""
        self._is_closed = True
        tasks = [task for group in self._groups.values() for task in group.lists]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _nodes(self, model: str) -> int:
        return max(1, len(self._pool.view.having(model)))

    def _wait(self, key: Key, group: _Group) -> None:
        loop = asyncio.get_running_loop()
        group.timer = loop.call_later(self._seconds, self._send, key, group)

    def _send(self, key: Key, group: _Group) -> None:
        """Send what waits, unless all nodes have work: then it goes with what comes meanwhile."""
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        if len(group.lists) >= 2 * self._nodes(key.model):
            return  # `_sent` comes back to it
        wanted = (each for each in group.waiting.values() if not each.done.done())
        texts = list(islice(wanted, _MOST))
        for each in texts:
            del group.waiting[each.done]
        if not texts:
            return
        # It belongs to the trace of its first text, and not to that of whoever woke this up.
        task = asyncio.create_task(
            self._embed(key, texts),
            name=f"embed {len(texts)} gathered",
            context=texts[0].context,
        )
        group.lists.add(task)
        task.add_done_callback(lambda done: self._sent(key, group, done))
        left = [len(texts)]

        def leave(_: object) -> None:
            left[0] -= 1
            if not left[0]:
                task.cancel()  # everybody has left, or has his vector

        for each in texts:
            each.done.add_done_callback(leave)
        if group.waiting:
            self._wait(key, group)

    def _give_up(self, group: _Group) -> None:
        """Refuse the texts that have waited too long: all wait equally long, the first ends first.

        Those in a list wait no longer here; the pool sees to them.
        """
        loop = asyncio.get_running_loop()
        now, most = loop.time(), self._pool.gateway_access.wait_timeout
        group.watch = None
        for each in group.waiting.values():
            left = each.came + most - now
            if left > 0:
                group.watch = loop.call_later(left, self._give_up, group)
                break
            if not each.done.done():
                each.done.set_exception(saturated(now - each.came))

    def _sent(self, key: Key, group: _Group, task: asyncio.Task[None]) -> None:
        group.lists.discard(task)
        if group.waiting and group.timer is None:
            self._send(key, group)

    async def _vectors(self, key: Key, texts: list[str]) -> Embeddings:
        """The vectors of a list; what failed by itself is in ``.errors``. Raises SollolError."""
        settings: dict[str, Any] = {"dimensions": key.dimensions, "truncate": key.truncate}
        if len(texts) <= _ONE_REQUEST:
            try:
                return await self._pool.embed(key.model, texts, **settings)
            except SollolError as error:
                # Where a node has answered, it may be for one of the texts, which a batch finds.
                has_asked = isinstance(error, RequestFailed) and bool(error.attempts)
                if not (has_asked or isinstance(error, NodeError)):
                    raise
        return await self._pool.embed_batch(key.model, texts, on_error="return", **settings)

    async def _embed(self, key: Key, texts: list[_Waiting]) -> None:
        """Embed a list, and give everybody his own vector or error."""
        failed: SollolError = PoolClosed("the gateway is being closed")
        try:
            embeddings = await self._vectors(key, [each.text for each in texts])
            nodes = ",".join(embeddings.report.nodes) if embeddings.report else ""
            for index, each in enumerate(texts):
                if each.done.done():
                    continue
                if error := embeddings.errors.get(index):
                    each.done.set_exception(error)
                else:
                    tokens = len(each.text) // 4 + 2
                    each.done.set_result(Gathered(embeddings[index], tokens, nodes))
        except SollolError as error:
            failed = error
        finally:
            for each in texts:
                if not each.done.done():
                    # A copy for each: one that many tasks raise gathers all their tracebacks.
                    each.done.set_exception(copy(failed))
