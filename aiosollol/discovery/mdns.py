"""Who announces a node on the network, as it comes, changes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiosollol.discovery.multicast import opened
from aiosollol.wire.announcement import SERVICE_TYPE, Announcement, read_announcement, urls_of

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

_log = logging.getLogger("aiosollol.discovery")

_RESOLVE_SECONDS = 10.0  # what came with its addresses, as most does, is not waited for at all
_MOST = 1000  # nodes: whoever announces more than that means no good


class Heard(NamedTuple):
    """A node that announces itself, or announces itself anew. Nothing of it has been verified.

    service: tells it from others until it is `Gone`. urls: where it may answer, at least one.
    """

    service: str
    urls: tuple[str, ...]
    announcement: Announcement


class Gone(NamedTuple):
    """A node that said goodbye, or whose announcement ran out or became void."""

    service: str
    urls: tuple[str, ...]


News: TypeAlias = Heard | Gone


@asynccontextmanager
async def browse(
    *, interfaces: Sequence[str] | None = None, seconds: float | None = None
) -> AsyncIterator[AsyncIterator[News]]:
    """While the block runs, who announces a node: an iterator that waits for the next news.

    ::

        async with browse(seconds=1.0) as news:
            async for each in news: ...

    What is not fetched in time is replaced by what came later of the same node. seconds: the
    iterator ends after this time; None goes on for ever. interfaces: see `opened`, also for what
    is raised on entering.
    """
    async with opened(interfaces) as zeroconf:
        from zeroconf.asyncio import AsyncServiceBrowser

        listener = _Listener(zeroconf, seconds)
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, [listener.on_change])
        try:
            yield listener
        finally:
            await browser.async_cancel()
            await listener.aclose()


class _Listener:
    """What zeroconf tells, as news about nodes."""

    def __init__(self, zeroconf: AsyncZeroconf, seconds: float | None) -> None:
        self._zeroconf = zeroconf.zeroconf
        self._deadline = None
        if seconds is not None:
            self._deadline = asyncio.get_running_loop().time() + seconds
        self._heard: dict[str, Heard] = {}  # all keys are in lower case, as DNS compares names
        self._news: dict[str, News] = {}
        self._has_news = asyncio.Event()
        self._asking: dict[str, asyncio.Task[None]] = {}

    def __aiter__(self) -> AsyncIterator[News]:
        return self

    async def __anext__(self) -> News:
        try:
            async with asyncio.timeout_at(self._deadline):
                while not self._news:
                    self._has_news.clear()
                    await self._has_news.wait()
        except TimeoutError:
            raise StopAsyncIteration from None
        return self._news.pop(next(iter(self._news)))

    async def aclose(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def on_change(self, zeroconf: Any, service_type: str, name: str, state_change: Any) -> None:
        """A handler of zeroconf's, which calls it by these names. It must not raise."""
        from zeroconf import ServiceStateChange

        try:
            if state_change is ServiceStateChange.Removed:
                self._lose(name)
            else:
                self._learn(name)
        except Exception as error:  # made by what somebody sent
            _log.debug("the announcement of %r cannot be understood: %r", name, error)
            self._lose(name)

    def _learn(self, name: str) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        key = name.lower()
        if key not in self._heard and len(self._heard) + len(self._asking) >= _MOST:
            return
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if info.load_from_cache(self._zeroconf):
            self._take(name, info)
        elif key not in self._asking:
            self._asking[key] = asyncio.create_task(self._ask(name, info))

    async def _ask(self, name: str, info: AsyncServiceInfo) -> None:
        try:
            if await info.async_request(self._zeroconf, _RESOLVE_SECONDS * 1000):
                self._take(name, info)
        except Exception as error:  # as above
            _log.debug("the announcement of %r cannot be resolved: %r", name, error)
        finally:
            self._asking.pop(name.lower(), None)

    def _take(self, name: str, info: AsyncServiceInfo) -> None:
        announcement = read_announcement(info.get_name(), info.properties)
        urls: tuple[str, ...] = ()
        if announcement is not None:
            urls = urls_of(announcement, info.parsed_scoped_addresses(), info.port or 0)
        if announcement is None or not urls:
            _log.debug("the announcement of %r leads nowhere", name)
            self._lose(name, still_asking=True)
            return
        heard = Heard(name, urls, announcement)
        if self._heard.get(name.lower()) != heard:
            self._heard[name.lower()] = heard
            self._tell(heard)

    def _lose(self, name: str, *, still_asking: bool = False) -> None:
        task = None if still_asking else self._asking.pop(name.lower(), None)
        if task is not None:
            task.cancel()
        lost = self._heard.pop(name.lower(), None)
        if lost is not None:
            self._tell(Gone(lost.service, lost.urls))

    def _tell(self, news: News) -> None:
        self._news[news.service.lower()] = news
        self._has_news.set()
