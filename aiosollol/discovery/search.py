"""`Search`: one search for nodes, as an async iterable. `Watch`: nodes as they come and go."""

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

    It starts on entering, or with the first step of the iteration. Leaving the block, or the
    iteration if there is no block, ends it and closes every socket.

    skipped: the networks that were not swept, and why; known before the first node.
    addresses: the number of addresses asked.
    open_at_most: the most sockets that were open at once.
    seconds: its duration, 0 until it ends.
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
        # A generator, because asyncio closes it after a `break`.
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
            self._task.result()  # raises its error

    async def aclose(self) -> None:
        """End the search and close its tasks and sockets. Idempotent."""
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
        """Read interfaces and resolve trusted names. Takes a few milliseconds, and sends no packet
        except to the resolver."""
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
            _log.warning("the networks of this machine are unknown, so none is searched: %s", error)
            return NetworkNeighbourhood()


async def _resolved(trust: Trust | None, timeout: float) -> Trust | None:
    return None if trust is None else await trust.resolved(timeout)


INTERVAL = 60.0
"""Seconds between two searches. Announcements are handled at once."""

_PATIENCE = 2
"""Searches that a node has to miss before it counts as gone: it may be busy."""


class Arrived(NamedTuple):
    """A node that has answered."""

    node: Discovered


class Departed(NamedTuple):
    """A node that is gone, and the reason in words."""

    node: Discovered
    reason: str


Change: TypeAlias = Arrived | Departed


class Watch:
    """An async iterator of changes, starting with the arrival of all present nodes.

    ::

        async with Watch(ports=[11434]) as changes:
            async for change in changes: ...

    Announcements are handled at once, and the networks are searched every `interval` seconds. An
    announced node is gone when it says goodbye, any node when it misses two searches. options:
    those of `discover`; `known` is probed each time. Raises InvalidInput as `discover` does.
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
        self._asking: dict[str, asyncio.Task[None]] = {}  # by service name
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
        self._changes.put_nowait(None)  # for later calls
        if not self._task.cancelled():
            self._task.result()  # raises its error
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
                        # The answer to an earlier announcement would be out of date.
                        asking = self._asking.pop(each.service, None)
                        if asking is not None:
                            asking.cancel()
                        if isinstance(each, Heard):
                            self._asking[each.service] = group.create_task(self._ask(each))
                        else:
                            self._hear_goodbye(each)
            except NodeUnreachable as error:  # no network, which may change
                _log.info("cannot listen to announcements: %s", error)
            await asyncio.sleep(self._interval)

    def _hear_goodbye(self, gone: Gone) -> None:
        for url in gone.urls:
            if url in self.nodes and self.nodes[url].source == "zeroconf":
                self._depart(url, "said goodbye")

    async def _ask(self, heard: Heard) -> None:
        """Probe an announced node; report it if it answers."""
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
