"""`browse`: zeroconf announcements of nodes as they appear, change and disappear."""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiosollol.core.networks import Interface
from aiosollol.core.redaction import safe_repr
from aiosollol.discovery.local_machine import read_surroundings
from aiosollol.errors import InvalidInput, NodeUnreachable
from aiosollol.wire.announcement import SERVICE_TYPE, Announcement, read_announcement, urls_of

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

_log = logging.getLogger("aiosollol.discovery")

_RESOLVE_SECONDS = 10.0  # only for announcements without addresses, which are rare
_MOST = 1000  # nodes; a defence against floods of announcements


class Heard(NamedTuple):
    """A new or changed announcement of a node. Nothing in it has been verified.

    service: identifies it until it is `Gone`. urls: where it may answer, at least one.
    """

    service: str
    urls: tuple[str, ...]
    announcement: Announcement


class Gone(NamedTuple):
    """A node that said goodbye, or whose announcement expired or became invalid."""

    service: str
    urls: tuple[str, ...]


News: TypeAlias = Heard | Gone


@asynccontextmanager
async def browse(
    *, interfaces: Sequence[str] | None = None, seconds: float | None = None
) -> AsyncIterator[AsyncIterator[News]]:
    """Listen for announcements while the block runs: gives an iterator over the news.

    ::

        async with browse(seconds=1.0) as news:
            async for each in news: ...

    News that has not been fetched is replaced by later news of the same node.

    seconds: the iterator ends after this time; None: never.
    interfaces: see `opened`, also for the errors raised on entering.
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
    """Turns zeroconf's callbacks into news about nodes."""

    def __init__(self, zeroconf: AsyncZeroconf, seconds: float | None) -> None:
        self._zeroconf = zeroconf.zeroconf
        self._deadline = None
        if seconds is not None:
            self._deadline = asyncio.get_running_loop().time() + seconds
        self._heard: dict[str, Heard] = {}  # lower-case keys: DNS names are case-insensitive
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
        """A zeroconf handler, called with these keyword arguments. Must not raise."""
        from zeroconf import ServiceStateChange

        try:
            if state_change is ServiceStateChange.Removed:
                self._lose(name)
            else:
                self._learn(name)
        except Exception as error:  # caused by a packet from the network
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
            _log.debug("the announcement of %r has no usable address", name)
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


_START_SECONDS = 3.0
_GOODBYE_SECONDS = 2.0  # it is sent three times within a quarter of a second


@asynccontextmanager
async def opened(interfaces: Sequence[str] | None) -> AsyncIterator[AsyncZeroconf]:
    """Zeroconf on these interfaces, each given by one of this machine's addresses.

    None uses all but loopback and VPNs. Leaving sends a goodbye for registered services, in at most
    two seconds. Raises InvalidInput for an invalid address, and NodeUnreachable if there is no such
    interface or the multicast DNS port is taken.
    """
    # The import takes a tenth of a second, so it runs in a thread.
    await asyncio.to_thread(importlib.import_module, "zeroconf.asyncio")
    addresses = await _addresses(interfaces)
    zeroconf = _start(addresses)
    try:
        try:
            await zeroconf.zeroconf.async_wait_for_start(timeout=_START_SECONDS)
        except Exception as error:
            raise _unreachable("it does not start", error) from error
        if not zeroconf.zeroconf.engine.senders:
            raise _unreachable(f"no multicast on the interfaces of {', '.join(addresses)}")
        yield zeroconf
    finally:
        await _close(zeroconf)


def multicast_addresses(interfaces: Sequence[Interface]) -> list[str]:
    """One address of each interface to listen on, IPv4 if it has one.

    Virtual machines and containers are included. A VPN carries no multicast, or carries it to
    strangers.
    """
    chosen: dict[str, Interface] = {}
    for each in sorted(interfaces, key=lambda i: i.address.version):
        if each.kind in ("loopback", "vpn"):
            continue
        chosen.setdefault(each.name, each)
    found = [each.address.ip for each in chosen.values()]
    # A bridge with only a link-local IPv6 address would need a socket of the other family.
    return [str(ip) for ip in found if ip.version == 4] or [str(ip) for ip in found]


async def _addresses(interfaces: Sequence[str] | None) -> list[str]:
    if interfaces is None:
        surroundings = await read_surroundings()
        found = multicast_addresses(surroundings.interfaces)
        if not found:
            raise _unreachable("this machine is on no network")
        return found
    if isinstance(interfaces, str) or not interfaces:
        raise InvalidInput(f"interfaces must be a list of addresses, not {safe_repr(interfaces)}")
    for address in interfaces:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidInput(
                f"{safe_repr(address)} in interfaces is not an address: write one that this "
                "machine has on the interface, like 192.168.1.7"
            ) from None  # the cause would quote it in full
    return list(interfaces)


def _start(addresses: list[str]) -> AsyncZeroconf:
    from zeroconf.asyncio import AsyncZeroconf

    try:
        return AsyncZeroconf(interfaces=addresses)
    except (OSError, RuntimeError) as error:
        raise _unreachable("the port of multicast DNS, 5353, cannot be used", error) from error


async def _close(zeroconf: AsyncZeroconf) -> None:
    """Send the goodbye and close the sockets, even if the caller is cancelled."""
    closing = asyncio.ensure_future(_say_goodbye(zeroconf))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


async def _say_goodbye(zeroconf: AsyncZeroconf) -> None:
    try:
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await zeroconf.async_close()
    except BaseException as error:
        zeroconf.zeroconf.engine.close()
        if not isinstance(error, Exception):
            raise
        _log.warning("zeroconf did not close cleanly: %r", error)


def _unreachable(problem: str, error: BaseException | None = None) -> NodeUnreachable:
    return NodeUnreachable("zeroconf", f"{problem}{f': {error}' if error and str(error) else ''}")
