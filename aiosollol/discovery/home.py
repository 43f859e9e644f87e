"""What is on this machine, and which of its addresses a server should be known by."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aiosollol.core.address import Address
from aiosollol.core.discovered import Discovered, Source
from aiosollol.core.networks import Interface, IPAddress, Kind
from aiosollol.discovery.identify import ServerIdentity
from aiosollol.wire.announcement import Announcement

LOOPBACK = ("127.0.0.1", "::1")

_SOURCES: tuple[Source, ...] = ("environment", "known", "zeroconf", "scan")
# The address by which others reach it comes first.
_KINDS: tuple[Kind, ...] = ("lan", "vpn", "link-local", "docker", "loopback")


class Found(NamedTuple):
    """A server that is an Ollama: by which address it was asked, and what it answered.

    ip: the address that stands behind the host of `address`.
    """

    address: Address
    ip: IPAddress
    answer: ServerIdentity
    fingerprint: str = ""
    source: Source = "scan"

    def as_discovered(self, announced: Announcement | None = None) -> Discovered:
        """As users see it, with what it announces of itself."""
        name = machine = agent = ""
        if announced is not None:
            name, machine = announced.name, announced.machine
            if announced.agent:
                agent = Address("http", str(self.ip), announced.agent).url
        return Discovered(
            self.address.url,
            self.answer.version,
            tuple(self.answer.models),
            self.source,
            self.answer.seconds,
            name=name,
            machine=machine,
            fingerprint=self.fingerprint,
            agent=agent,
        )


class LocalMachine:
    """The addresses and names of this machine."""

    def __init__(self, interfaces: Sequence[Interface] = (), host_name: str = "") -> None:
        self._kinds = {str(each.address.ip): each.kind for each in interfaces}
        self._docker = [each.network for each in interfaces if each.kind == "docker"]
        short = host_name.lower().partition(".")[0]
        self._names = {"localhost", host_name.lower(), short, f"{short}.local"} - {"", ".local"}

    def has(self, host: str) -> bool:
        """Whether a host, by address or name, is this machine, as far as can be told offline.

        Of the many addresses of loopback, only the two that everybody uses count: who asks for
        others has put different servers on them.
        """
        host = host.lower()
        return (
            host in LOOPBACK
            or self._kinds.get(host, "loopback") != "loopback"
            or host in self._names
            or host.endswith(".localhost")  # RFC 6761, section 6.3
        )

    def is_docker(self, ip: IPAddress) -> bool:
        """Whether it is a container on a bridge of this machine, or this machine's end of it."""
        return any(ip in network for network in self._docker)

    def lan_addresses(self) -> list[str]:
        """The addresses by which other machines reach this one. IPv4 comes first."""
        found = [ip for ip, kind in self._kinds.items() if kind == "lan"]
        return sorted(found, key=lambda ip: ":" in ip)

    def rank(self, ip: IPAddress) -> int:
        """Lower is better known to others."""
        kind = self._kinds.get(str(ip)) or ("loopback" if ip.is_loopback else "lan")
        return _KINDS.index(kind)

    def one_each(self, found: Iterable[Found]) -> list[Found]:
        """Each server of this machine once, by its best address, however it was found.

        Addresses with the same port lead to one server if it says the same of itself on both. A
        server that was named (by OLLAMA_HOST) counts as named by its best address too.
        """
        servers: dict[object, list[Found]] = {}
        for each in found:
            servers.setdefault(identity(each), []).append(each)
        best = []
        for group in servers.values():
            first = min(group, key=lambda each: self.rank(each.ip))
            source = min((each.source for each in group), key=_SOURCES.index)
            best.append(first._replace(source=source))
        return sorted(best, key=lambda each: _SOURCES.index(each.source))


def identity(found: Found) -> object:
    """Equal for one server, asked by several addresses of one machine."""
    address = found.address
    return address.scheme, address.port, address.path, found.answer.contents


def as_ip(host: str) -> IPAddress | None:
    """A host as an address, None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
