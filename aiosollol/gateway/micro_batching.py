"""`MicroBatcher`: gathers concurrent single texts into lists, so they need fewer requests.

A server embeds one text after another, so of many concurrent single requests all but one or two
wait. In a list they wait as well, but cost one request together. A lone text is not delayed:
gathering starts only when more texts are in flight than the nodes can work on.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from copy import copy
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.routing.wait_queue import saturated
from aiosollol.core.scheduling.token_counts import shares, weight
from aiosollol.errors import NodeError, PoolClosed, RequestFailed, SollolError

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool

_MOST = 256  # texts in one list
_ONE_REQUEST = 32
"""Longest list sent to one node without a plan: planning a batch of 12 took 1 ms more. All nodes
stay busy, as there are enough lists in flight. Longer lists are planned and spread."""


class Key(NamedTuple):
    """The settings that all texts in a list share."""

    model: str
    dimensions: int | None = None
    truncate: bool | None = None


class Gathered(NamedTuple):
    """One vector of a list.

    tokens: its share of the nodes' count for the list, in proportion to an estimate, because Ollama
    counts a list as a whole. The shares of a list add up to its count.
    nodes: the nodes that embedded the list, separated by commas.
    """

    vector: Vector
    tokens: int
    nodes: str


class _Waiting(NamedTuple):
    text: str
    done: asyncio.Future[Gathered]
    context: Context
    came: float


class _Group:
    """The texts in flight for one key.

    waiting: those in no list yet, by arrival; a client that leaves may remove any of them.
    timer: sends them.
    watch: ends the wait of the oldest.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: OrderedDict[asyncio.Future[Gathered], _Waiting] = OrderedDict()
        self.timer: asyncio.TimerHandle | None = None
        self.watch: asyncio.TimerHandle | None = None
        self.lists: set[asyncio.Task[None]] = set()


class MicroBatcher:
    """Gathers single texts into lists.

    seconds: how long the first text of a list waits for others; 0 turns gathering off.
    above: texts in flight per node above which gathering starts.
    """

    def __init__(self, pool: OllamaPool, seconds: float, above: int) -> None:
        self._pool = pool
        self._seconds = seconds
        self._above = above
        self._groups: dict[Key, _Group] = {}
        self._is_closed = False

    @contextmanager
    def enter(self, key: Key) -> Iterator[bool]:
        """Count a text as in flight, and yield whether to gather it."""
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
        """The vector of a text that has entered (see `enter`). Raises SollolError."""
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
        calls = self._pool.gateway_access.calls
        try:
            with calls.counting():
                return await done
        finally:
            group.waiting.pop(done, None)

    async def aclose(self) -> None:
        """Cancel the lists in flight."""
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
        """Send the waiting texts, unless all nodes are busy: then wait for more texts."""
        if group.timer is not None:
            group.timer.cancel()
            group.timer = None
        if len(group.lists) >= 2 * self._nodes(key.model):
            return  # `_sent` calls this again
        wanted = (each for each in group.waiting.values() if not each.done.done())
        texts = list(islice(wanted, _MOST))
        for each in texts:
            del group.waiting[each.done]
        if not texts:
            return
        # The list belongs to the trace of its first text, not to that of the current task.
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
                task.cancel()  # every client has left, or has its vector

        for each in texts:
            each.done.add_done_callback(leave)
        if group.waiting:
            self._wait(key, group)

    def _give_up(self, group: _Group) -> None:
        """Refuse the texts that have waited too long; the oldest is first, as all may wait equally.

        Once a text is in a list, the pool limits its wait.
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
        """The vectors of a list, with errors of single texts in ``.errors``. Raises SollolError."""
        embed = partial(self._pool.gateway_access.embed_gathered, key.model, texts)
        if len(texts) <= _ONE_REQUEST:
            try:
                return await embed(key.dimensions, key.truncate, is_batch=False)
            except SollolError as error:
                # If a node has answered, a single text may be the cause: a batch finds it.
                has_asked = isinstance(error, RequestFailed) and bool(error.attempts)
                if not (has_asked or isinstance(error, NodeError)):
                    raise
        return await embed(key.dimensions, key.truncate, is_batch=True)

    async def _embed(self, key: Key, texts: list[_Waiting]) -> None:
        """Embed a list, and set the vector or error of each text."""
        failed: SollolError = PoolClosed("the gateway is being closed")
        try:
            embeddings = await self._vectors(key, [each.text for each in texts])
            nodes = ",".join(embeddings.report.nodes) if embeddings.report else ""
            tokens = _tokens(texts, embeddings)
            for index, each in enumerate(texts):
                if each.done.done():
                    continue
                if error := embeddings.errors.get(index):
                    each.done.set_exception(error)
                else:
                    each.done.set_result(Gathered(embeddings[index], tokens[index], nodes))
        except SollolError as error:
            failed = error
        finally:
            for each in texts:
                if not each.done.done():
                    # A copy for each: an error raised by many tasks collects all their tracebacks.
                    each.done.set_exception(copy(failed))


def _tokens(texts: list[_Waiting], embeddings: Embeddings) -> list[int]:
    """The tokens of each text: shares of what the nodes counted, if they did."""
    weights = [
        0.0 if index in embeddings.errors else weight(each.text) for index, each in enumerate(texts)
    ]
    report = embeddings.report
    counted = report.tokens if report is not None else 0
    return shares(counted or round(sum(weights)), weights)
