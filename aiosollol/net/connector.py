"""`Connector`: opens connections to a server: name lookup, Happy Eyeballs, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

from aiosollol.core.address import Address

if TYPE_CHECKING:
    import ssl

_NAME_SECONDS = 60.0
_NEXT_SECONDS = 0.25  # RFC 8305: delay before the next address is tried as well
_GOODBYE_SECONDS = 1.0

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)


class WrongCertificate(OSError):
    """A server's certificate does not match the pinned fingerprint."""


class Connector:
    """Makes connections to one server.

    fingerprint: SHA-256 of its certificate in hexadecimal; then only that certificate is trusted,
    whatever its issuer and name.
    """

    def __init__(self, address: Address, fingerprint: str | None = None) -> None:
        self._address = address
        self._fingerprint = fingerprint
        self._context: ssl.SSLContext | None = None
        self._hosts: Sequence[str] = ()
        self._known_until = 0.0
        self._lookup = asyncio.Lock()

    async def dial(self, factory: Callable[[], _Protocol]) -> _Protocol:
        """A connected protocol, made by `factory`. Raises OSError."""
        options: dict[str, Any] = {}
        if self._address.scheme == "https":
            self._context = self._context or await self._make_context()
            name, _, _ = self._address.host.partition("%")  # without an IPv6 zone
            options = {"ssl": self._context, "server_hostname": name}
            options["ssl_shutdown_timeout"] = _GOODBYE_SECONDS

        async def reach(host: str) -> tuple[asyncio.Transport, _Protocol]:
            loop = asyncio.get_running_loop()
            return await loop.create_connection(factory, host, self._address.port, **options)

        if _is_literal(self._address.host):
            transport, protocol = await reach(self._address.host)
        else:
            try:
                transport, protocol = await _first(reach, await self._look_up())
            except BaseException:
                self._known_until = 0.0  # the host may have moved, even if this only timed out
                raise
        if self._fingerprint is not None:
            self._check_certificate(transport)
        return protocol

    async def _make_context(self) -> ssl.SSLContext:
        if self._fingerprint is None:
            # Loading the system's certificate authorities takes as long as many requests.
            return await asyncio.to_thread(_trusting_authorities)
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # `_check_certificate` verifies before anything is sent
        return context

    def _check_certificate(self, transport: asyncio.Transport) -> None:
        from hashlib import sha256

        certificate = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        found = sha256(certificate or b"").hexdigest()
        if found != self._fingerprint:
            transport.abort()
            raise WrongCertificate(
                f"its certificate has the fingerprint {found}, not the pinned one"
            )

    async def _look_up(self) -> Sequence[str]:
        """The addresses of the host name. Concurrent requests share one lookup."""
        async with self._lookup:
            if time.monotonic() >= self._known_until:
                found = await asyncio.get_running_loop().getaddrinfo(
                    self._address.host, self._address.port, type=socket.SOCK_STREAM
                )
                self._hosts = _interleaved([(each[0], _as_host(each[4])) for each in found])
                self._known_until = time.monotonic() + _NAME_SECONDS
            return self._hosts


@lru_cache(maxsize=1)
def _trusting_authorities() -> ssl.SSLContext:
    """A context that trusts the system's authorities, shared by all connections."""
    import ssl

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _is_literal(host: str) -> bool:
    """Whether `host` is an IP address and needs no lookup."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


def _as_host(address: tuple[Any, ...]) -> str:
    """The IP address of a socket address, with its zone if it has one."""
    host: str = address[0]
    zone = address[3] if len(address) > 3 else 0
    return f"{host}%{zone}" if zone and "%" not in host else host


def _interleaved(found: Iterable[tuple[int, str]]) -> list[str]:
    """Hosts with alternating address families, so that a dead family costs little (RFC 8305)."""
    families: dict[int, list[str]] = {}
    for family, host in found:
        families.setdefault(family, []).append(host)
    return [host for host in chain.from_iterable(zip_longest(*families.values())) if host]


async def _first(
    reach: Callable[[str], Coroutine[Any, Any, tuple[asyncio.Transport, _Protocol]]],
    hosts: Sequence[str],
) -> tuple[asyncio.Transport, _Protocol]:
    """The first connection made. The next host is tried when one fails or is slow.

    Raises the first host's OSError if none can be reached.
    """
    if len(hosts) == 1:
        return await reach(hosts[0])
    left = iter(hosts)
    tasks: list[asyncio.Task[tuple[asyncio.Transport, _Protocol]]] = []
    pending: set[asyncio.Task[tuple[asyncio.Transport, _Protocol]]] = set()
    winner: asyncio.Task[tuple[asyncio.Transport, _Protocol]] | None = None
    try:
        while winner is None:
            host = next(left, None)
            if host is not None:
                tasks.append(asyncio.create_task(reach(host), name=f"connect to {host}"))
                pending.add(tasks[-1])
            elif not pending:
                break
            done, pending = await asyncio.wait(
                pending,
                timeout=None if host is None else _NEXT_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            winner = next((task for task in done if task.exception() is None), None)
    finally:
        for task in tasks:
            if task is not winner:
                task.cancel()
                task.add_done_callback(_dispose)
    if winner is not None:
        return winner.result()
    raise (tasks[0].exception() if tasks else None) or OSError("its name has no address")


def _dispose(task: asyncio.Task[tuple[asyncio.Transport, _Protocol]]) -> None:
    """Close the connection of a task that connected too late."""
    if not task.cancelled() and task.exception() is None:
        task.result()[0].abort()


Lookup = Callable[[str], Awaitable[Iterable[str]]]

_TIMEOUT_SECONDS = 2.0
_TTL_SECONDS = 300.0


class DnsCache:
    """Resolves names with the system's resolver. lookup: another resolver, for tests."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._lookup = lookup or _ask_system
        self._known: dict[str, tuple[float, frozenset[str]]] = {}

    async def resolve(self, hosts: Iterable[str]) -> dict[str, frozenset[str]]:
        """Host name -> addresses, for hosts that have any. Takes at most 2 s; never raises."""
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
        except (OSError, UnicodeError):  # includes TimeoutError; a name can be too long for IDNA
            return frozenset()
        self._known[host] = (now, addresses)
        return addresses


async def _ask_system(host: str) -> list[str]:
    answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in answers]
