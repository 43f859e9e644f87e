"""Nodes as they come and go, for as long as somebody wants to know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

from aiosollol.core.discovered import Discovered
from aiosollol.discovery.hunt import Browse
from aiosollol.discovery.mdns import Gone, Heard, News, browse
from aiosollol.discovery.options import SearchOptions
from aiosollol.discovery.search import Search
from aiosollol.errors import NodeUnreachable

_log = logging.getLogger("aiosollol.discovery")

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
        **options: Any,
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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
            options = {**self._options, "known": known, "use_zeroconf": False}
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
        options = {**self._options, "known": (), "use_scan": False, "use_zeroconf": True}
        options |= {"environ": {}, "exclude_localhost": True}
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
