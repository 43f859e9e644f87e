"""Searches of named loopback networks, with servers, interfaces and announcements to find.

Deadlines that a test must not wait for are far away, so a passing test has not waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Interface
from typing import Any

from discovery_servers import (
    Behaviour,
    Server,
    serving,
)

from aiosollol.core.networks import Discovered, Interface, Kind
from aiosollol.discovery import Search
from aiosollol.discovery.local_machine import NetworkNeighbourhood
from aiosollol.discovery.mdns import Heard, News
from aiosollol.discovery.options import SearchOptions
from aiosollol.wire.announcement import Announcement

NET = "127.0.0.16/28"
HOSTS = tuple(f"127.0.0.{last}" for last in range(17, 31))
LONG = 30.0  # seconds; never waited
DEFAULTS: dict[str, Any] = {
    "timeout": LONG,
    "ports": (11434,),
    "subnets": (NET,),
    "known": (),
    "allow": (),
    "deny": (),
    "trusted": None,
    "exclude_localhost": False,
    "auto_resolve_docker": True,
    "discover_all_nodes": True,
    "use_zeroconf": True,
    "use_scan": True,
    "max_open": 256,
    "max_addresses": 1024,
    "environ": {},
}


class Placed(Interface):
    """An interface on a loopback address that claims to be of another kind."""

    __slots__ = ("_kind",)

    def __init__(self, kind: Kind, address: str) -> None:
        super().__init__(f"{kind}0", IPv4Interface(address))
        object.__setattr__(self, "_kind", kind)

    @property
    def kind(self) -> Kind:
        return self._kind  # type: ignore[attr-defined, no-any-return]


@asynccontextmanager
async def no_announcements() -> AsyncIterator[AsyncIterator[News]]:
    async def none() -> AsyncIterator[News]:
        return
        yield

    yield none()


def announcing(*news: News, then_ends: bool = True) -> Any:
    """A `browse` that yields these announcements, and then no more."""

    @asynccontextmanager
    async def browse() -> AsyncIterator[AsyncIterator[News]]:
        async def each() -> AsyncIterator[News]:
            for one in news:
                yield one
            if not then_ends:
                await asyncio.Event().wait()

        yield each()

    return browse


def heard(*urls: str, **fields: Any) -> Heard:
    name = fields.pop("name", "box")
    return Heard(f"{name}._ollama._tcp.local.", urls, Announcement(name, **fields))


def searching(
    *,
    around: Sequence[Interface] = (),
    host_name: str = "",
    browse: Any = no_announcements,
    **given: Any,
) -> Search:
    async def surroundings() -> NetworkNeighbourhood:
        return NetworkNeighbourhood(tuple(around), (), host_name)

    options = SearchOptions.parse(**{**DEFAULTS, **given})
    return Search(options, surroundings=surroundings, browse=browse)


async def all_of(search: Search) -> list[Discovered]:
    async with asyncio.timeout(20):
        return [node async for node in search]


def urls(nodes: Sequence[Discovered]) -> list[str]:
    return sorted(node.url for node in nodes)


class Servers:
    """Servers on one port of several addresses."""

    def __init__(self, stack: AsyncExitStack, port: int) -> None:
        self._stack = stack
        self.port = port

    async def start(self, behave: Behaviour, host: str, **options: Any) -> Server:
        return await self._stack.enter_async_context(serving(behave, host, self.port, **options))
