"""Which addresses a host name stands for: asked without blocking, and remembered for a while."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable

Lookup = Callable[[str], Awaitable[Iterable[str]]]

_TIMEOUT_SECONDS = 2.0
_TTL_SECONDS = 300.0


class DnsCache:
    """Asks DNS, by the system's resolver. lookup: another way to ask, for tests."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._lookup = lookup or _ask_system
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    async def resolve(self, hosts: Iterable[str]) -> dict[str, frozenset[str]]:
        """Host name -> its addresses, for those that have any. Takes 2 s at most; never raises."""
        wanted = sorted(set(hosts))
        found = await asyncio.gather(*(self._resolve(host) for host in wanted))
        return {host: addresses for host, addresses in zip(wanted, found, strict=True) if addresses}

    async def _resolve(self, host: str) -> frozenset[str]:
        now = time.monotonic()
        known = self._known.get(host)
        if known is not None and now - known[0] < _TTL_SECONDS:
            return known[1]
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                addresses = frozenset(await self._lookup(host))
        except (OSError, UnicodeError):  # TimeoutError is one; a name can be too long for IDNA
            return frozenset()
        self._known[host] = (now, addresses)
        return addresses


async def _ask_system(host: str) -> list[str]:
    answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in answers]
