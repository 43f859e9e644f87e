"""`Search` and `Watch`: a search that can be iterated over and left early; nodes as they come and
go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeAlias, Unpack

from aiosollol.core.networks import Discovered, Skipped
from aiosollol.discovery.local_machine import NetworkNeighbourhood, read_surroundings
from aiosollol.discovery.mdns import Gone, Heard, News, browse
from aiosollol.discovery.options import SearchArguments, SearchOptions, Trust
from aiosollol.discovery.sockets import Sockets
from aiosollol.discovery.sweep import Browse, Enough, SearchRun
from aiosollol.errors import NodeUnreachable

_log = logging.getLogger("aiosollol.discovery")


class Search:
    """A search for nodes: an async iterable of `Discovered`, and an async context manager.

    It begins with the first step of the iteration, or on entering. Leaving the block, or the
    iteration where there is no block, ends it and closes every socket.

    skipped: the networks that were not swept, and why; known before the first node.
    addresses: how many were asked. open_at_most: sockets open at once.
    seconds: how long it took, 0 before its end.
    """

    def __init__(
        self,
        options: SearchOptions,
        *,
        surroundings: Callable[[], Awaitable[NetworkNeighbourhood]] = read_surroundings,
        browse: Browse = browse,
    ) -> None:
        self.seconds = 0.0
        self._options = options
        self._surroundings = surroundings
        self._browse = browse
        self._sockets = Sockets(options.max_open)
        self._hunt: SearchRun | None = None
        self._arrived: asyncio.Queue[Discovered | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_entered = False
        self._is_closed = False

    def __repr__(self) -> str:
        is_over = self._is_closed if self._task is None else self._task.done()
        state = "over" if is_over else "new" if self._task is None else "under way"
        return f"<Search {state}, {self.addresses} addresses asked>"

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return () if self._hunt is None else self._hunt.skipped

    @property
    def addresses(self) -> int:
        return 0 if self._hunt is None else self._hunt.asker.asked

    @property
    def open_at_most(self) -> int:
        return self._sockets.open_at_most

    async def __aenter__(self) -> Search:
        self._is_entered = True
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncGenerator[Discovered, None]:
        # A generator, because asyncio ends one that a loop was broken out of.
        return self._nodes()

    async def _nodes(self) -> AsyncGenerator[Discovered, None]:
        self._start()
        try:
            while (node := await self._arrived.get()) is not None:
                yield node
            self._arrived.put_nowait(None)  # for another iteration
        finally:
            if not self._is_entered:
                await self.aclose()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()  # raises what went wrong in it

    async def aclose(self) -> None:
        """End the search: no task and no socket is left. Idempotent."""
        self._is_closed = True
        if self._task is None:
            self._arrived.put_nowait(None)
        elif not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None and not self._is_closed:
            self._task = asyncio.create_task(self._run(), name="aiosollol search")

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            self._hunt = await self._prepare(began + self._options.timeout)
            await self._hunt.run()
        except* Enough:
            pass
        finally:
            self.seconds = clock() - began
            self._arrived.put_nowait(None)
            if self._hunt is not None:
                self._hunt.asker.tell_left_out()

    async def _prepare(self, deadline: float) -> SearchRun:
        """What is to be known before anybody is asked: a few milliseconds, and no packet but to
        the resolver, if host names are trusted."""
        options = self._options
        trust = options.trust
        around, trust = await asyncio.gather(self._look_around(), _resolved(trust, options.timeout))
        hunt = SearchRun(
            options,
            self._sockets,
            around,
            trust,
            browse=self._browse if options.use_zeroconf else None,
            tell=self._arrived.put_nowait,
            deadline=deadline,
        )
        await hunt.plan()
        return hunt

    async def _look_around(self) -> NetworkNeighbourhood:
        try:
            async with asyncio.timeout(self._options.timeout):
                return await self._surroundings()
        except (OSError, ImportError) as error:  # TimeoutError is an OSError
            _log.warning(
                "the networks of this machine are not known, so none is searched: %s", error
            )
            return NetworkNeighbourhood()


async def _resolved(trust: Trust | None, timeout: float) -> Trust | None:
    return None if trust is None else await trust.resolved(timeout)


INTERVAL = 60.0
"""Seconds between two searches. What is announced is known at once."""

_PATIENCE = 2
"""Searches that a node may fail to answer before it is gone: it can be busy."""


class Arrived(NamedTuple):
    """A node that has answered."""

    node: Discovered


class Departed(NamedTuple):
    """A node that is gone, and why, in words."""

    node: Discovered
    reason: str


Change: TypeAlias = Arrived | Departed


class Watch:
    """The changes from now on, as an async iterator; it begins with all nodes that there are.

    ::

        async with Watch(ports=[11434]) as changes:
            async for change in changes: ...

    Announcements are listened to all the time, and the networks searched each `interval` seconds.
    A node that was announced is gone when it says goodbye, every node when it was missed twice.
    options: those of `discover`; `known` is asked again each time. Raises InvalidInput as it does.
    """

    def __init__(
        self,
        *,
        interval: float = INTERVAL,
        search: Callable[..., AsyncIterable[Discovered]] = Search,
        browse: Browse = browse,
        **options: Unpack[SearchArguments],
    ) -> None:
        self.nodes: dict[str, Discovered] = {}
        self._options = options
        self._parsed = SearchOptions.parse(**options)
        self._interval = interval
        self._search = search
        self._browse = browse
        self._missed: dict[str, int] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}  # by the name of the service
        self._changes: asyncio.Queue[Change | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._run(), name="aiosollol watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Change:
        assert self._task is not None, "use 'async with'"
        change = await self._changes.get()
        if change is not None:
            return change
        self._changes.put_nowait(None)  # for who asks again
        if not self._task.cancelled():
            self._task.result()  # raises what went wrong in it
        raise StopAsyncIteration

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._search_again_and_again())
                if self._parsed.use_zeroconf:
                    group.create_task(self._listen(group))
        finally:
            self._changes.put_nowait(None)

    async def _search_again_and_again(self) -> None:
        while True:
            before = set(self.nodes)
            known = [*self._options.get("known", ()), *before]
            options: SearchArguments = {**self._options, "known": known, "use_zeroconf": False}
            found = set()
            async for node in self._search(SearchOptions.parse(**options)):
                found.add(node.url)
                self._arrive(node)
            for url in before - found:
                self._missed[url] = self._missed.get(url, 0) + 1
                if self._missed[url] >= _PATIENCE:
                    self._depart(url, f"did not answer {_PATIENCE} times")
            await asyncio.sleep(self._interval)

    async def _listen(self, group: asyncio.TaskGroup) -> None:
        while True:
            try:
                async with self._browse() as news:
                    async for each in news:
                        # An answer to what was announced before would be out of date.
                        asking = self._asking.pop(each.service, None)
                        if asking is not None:
                            asking.cancel()
                        if isinstance(each, Heard):
                            self._asking[each.service] = group.create_task(self._ask(each))
                        else:
                            self._hear_goodbye(each)
            except NodeUnreachable as error:  # no network, which can change
                _log.info("announcements cannot be listened to: %s", error)
            await asyncio.sleep(self._interval)

    def _hear_goodbye(self, gone: Gone) -> None:
        for url in gone.urls:
            if url in self.nodes and self.nodes[url].source == "zeroconf":
                self._depart(url, "said goodbye")

    async def _ask(self, heard: Heard) -> None:
        """What is announced has yet to answer."""
        options: SearchArguments = {**self._options, "known": (), "use_scan": False}
        options |= {"use_zeroconf": True, "environ": {}, "exclude_localhost": True}
        parsed = SearchOptions.parse(**options)
        async for node in self._search(parsed, browse=lambda: _once(heard)):
            self._arrive(node)

    def _arrive(self, node: Discovered) -> None:
        self._missed.pop(node.url, None)
        if node.url not in self.nodes:
            self.nodes[node.url] = node
            self._changes.put_nowait(Arrived(node))

    def _depart(self, url: str, reason: str) -> None:
        self._missed.pop(url, None)
        node = self.nodes.pop(url, None)
        if node is not None:
            self._changes.put_nowait(Departed(node, reason))


@asynccontextmanager
async def _once(heard: Heard) -> AsyncIterator[AsyncIterator[News]]:
    async def each() -> AsyncIterator[News]:
        yield heard

    yield each()
