"""Connections to addresses where perhaps nobody is: many at once, but never too many."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

_KEPT = 2
"""Sockets that a sweep leaves for nodes that were named or announced. A /24 without its network
and broadcast addresses needs the others, so that it is asked all at once."""


class Sockets:
    """Places for open sockets, so many at a time: ``async with sockets`` holds one.

    open_at_most: how many were open at once so far. limit: how many may be, which is `most` or a
    third of what this process may open, if that is less.
    """

    def __init__(self, most: int) -> None:
        self.limit = max(1, min(most, _file_limit() // 3))
        self.open_at_most = 0
        self._held = 0
        self._free = asyncio.Semaphore(self.limit)
        self._free_for_sweep = asyncio.Semaphore(max(1, self.limit - _KEPT))

    async def begin_sweeping(self) -> None:
        """Wait until the sweep may ask one more address. `end_sweeping` gives the place back."""
        await self._free_for_sweep.acquire()

    def end_sweeping(self) -> None:
        self._free_for_sweep.release()

    async def __aenter__(self) -> None:
        """Wait until one more socket may be open, and hold its place."""
        await self._free.acquire()
        self._held += 1
        self.open_at_most = max(self.open_at_most, self._held)

    async def __aexit__(self, *_: object) -> None:
        self._held -= 1
        self._free.release()


async def connect(host: str, port: int) -> socket.socket:
    """A socket that is connected to an IP address. One that cannot be, or is given up, is closed.

    Raises OSError if there is no connection. The caller brings the deadline, and closes it.
    """
    family, address = _socket_address(host, port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """How the operating system writes it. An IPv6 address may carry the interface: fe80::1%eth0."""
    if ":" not in host:
        return socket.AF_INET, (host, port)
    address, _, zone = host.partition("%")
    scope = 0
    if zone:
        scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return socket.AF_INET6, (str(ip_address(address)), port, 0, scope)


def _file_limit() -> int:
    """How many files and sockets this process may have open; 512 where it is not known."""
    try:
        import resource
    except ImportError:  # Windows, where select() is what limits
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
