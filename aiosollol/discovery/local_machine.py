"""This machine: its addresses, neighbours and id, and the best address for each server on it."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import socket
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiosollol.core.networks import Interface, IPAddress, Kind, Source
from aiosollol.core.redaction import safe_repr
from aiosollol.discovery.prober import Found
from aiosollol.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1")

_SOURCES: tuple[Source, ...] = ("environment", "known", "zeroconf", "scan")
# Addresses by which others reach this machine come first.
_KINDS: tuple[Kind, ...] = ("lan", "vpn", "link-local", "docker", "loopback")


class LocalMachine:
    """The addresses and names of this machine."""

    def __init__(self, interfaces: Sequence[Interface] = (), host_name: str = "") -> None:
        self._kinds = {str(each.address.ip): each.kind for each in interfaces}
        self._docker = [each.network for each in interfaces if each.kind == "docker"]
        short = host_name.lower().partition(".")[0]
        self._names = {"localhost", host_name.lower(), short, f"{short}.local"} - {"", ".local"}

    def has(self, host: str) -> bool:
        """Whether a host, given by address or name, is this machine, judged offline.

        Of the loopback addresses, only the two usual ones count: the others may hold different
        servers on purpose.
        """
        host = host.lower()
        return (
            host in LOOPBACK
            or self._kinds.get(host, "loopback") != "loopback"
            or host in self._names
            or host.endswith(".localhost")  # RFC 6761, section 6.3
        )

    def is_docker(self, ip: IPAddress) -> bool:
        """Whether `ip` is on a Docker bridge of this machine: a container, or the bridge itself."""
        return any(ip in network for network in self._docker)

    def lan_addresses(self) -> list[str]:
        """The addresses by which other machines reach this one, IPv4 first."""
        found = [ip for ip, kind in self._kinds.items() if kind == "lan"]
        return sorted(found, key=lambda ip: ":" in ip)

    def rank(self, ip: IPAddress) -> int:
        """The rank of an address of this machine; lower is easier to reach for others."""
        kind = self._kinds.get(str(ip)) or ("loopback" if ip.is_loopback else "lan")
        return _KINDS.index(kind)

    def one_each(self, found: Iterable[Found]) -> list[Found]:
        """Each server of this machine once, at its best address, however it was found.

        Addresses with the same port belong to one server if its answers are the same on both. A
        server given by OLLAMA_HOST keeps that source at its best address too.
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
    """Equal for one server, found at several addresses of one machine."""
    address = found.address
    return address.scheme, address.port, address.path, found.answer.contents


VARIABLE = "SOLLOL_MACHINE_ID"
"""Overrides the machine id, where it is not unique: containers, namespaces, cloned disks."""

_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_APPLICATION = b"aiosollol"
_RAW = re.compile(r"[0-9a-f]{32}")  # machine-id(5); it says "uninitialized" in an unbooted image
_GIVEN = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


def machine_id(environ: Mapping[str, str] = os.environ) -> str:
    """The id of this machine: 16 hexadecimal digits, or the value of SOLLOL_MACHINE_ID.

    Reads a file: in an event loop, call it in a thread. Raises ConfigError for a value of the
    variable that could not be announced.
    """
    given = environ.get(VARIABLE, "").strip()
    if not given:
        return _own_id()
    if not _GIVEN.fullmatch(given):
        raise ConfigError(
            f"{VARIABLE} is {safe_repr(given)}: write up to 64 letters, digits, dots, dashes and "
            "underscores, a letter or a digit first",
            source=VARIABLE,
        )
    return given


def hashed(raw: str) -> str:
    """A publishable id made from a raw one, which must stay private.

    machine-id(5): it "should be considered confidential"; "hash the machine ID with a
    cryptographic, keyed hash function, using a fixed, application-specific key".
    """
    return hmac.new(raw.encode(), _APPLICATION, hashlib.sha256).hexdigest()[:16]


@functools.cache
def _own_id() -> str:
    for path in _FILES:
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                raw = file.read(64).strip()
        except OSError:
            continue
        if _RAW.fullmatch(raw):
            return hashed(raw)
    number = uuid.getnode()
    if number >> 40 & 1:  # no hardware address found: this is a random one (RFC 4122, 4.5)
        return hashed(socket.gethostname())
    return hashed(f"{number:012x}")


_log = logging.getLogger("aiosollol.discovery")
_ARP_TABLE = "/proc/net/arp"
_UNREADABLE = (OSError, RuntimeError, ValueError, AssertionError)
"""Raised by netifaces2 and ifaddr if the system gives no answer, or an odd one."""
_COMPLETE = 0x2  # ATF_COM in linux/if_arp.h: the neighbour has answered


class NetworkNeighbourhood(NamedTuple):
    """This machine's interfaces, its host name, and its recently seen IPv4 neighbours."""

    interfaces: tuple[Interface, ...] = ()
    neighbours: tuple[str, ...] = ()
    host_name: str = ""


async def read_surroundings() -> NetworkNeighbourhood:
    """This machine's neighbourhood, read without sending a packet, in a few milliseconds.

    Empty where the system does not tell: never raises OSError.
    """
    # Uses a netlink socket, a file in /proc and, the first time, an import.
    return await asyncio.to_thread(_read)


def _read() -> NetworkNeighbourhood:
    return NetworkNeighbourhood(
        tuple(_read_interfaces()), tuple(_read_neighbours()), socket.gethostname()
    )


def _read_interfaces() -> list[Interface]:
    """The addresses of all interfaces, sorted by interface name, IPv4 first."""
    # Libraries are imported late, so that they are loaded only for a search.
    try:
        try:
            found = read_by_netifaces()
        except ImportError:  # not installed on every platform: see pyproject.toml
            found = read_by_ifaddr()
    except _UNREADABLE as error:
        _log.warning("the network interfaces could not be read, so none is used: %s", error)
        return []
    return sorted(found, key=lambda each: (each.name, each.address.version))


def read_by_netifaces() -> list[Interface]:
    """The addresses of all interfaces, in no order. Raises ImportError without netifaces."""
    if sys.platform == "win32":
        raise ImportError("netifaces2 0.0.22 never returns if an interface has two IPv4 addresses")
    import netifaces

    found = []
    for name in netifaces.interfaces():
        try:
            addresses: Any = netifaces.ifaddresses(name)
        except _UNREADABLE as error:  # it can disappear while it is read
            _log.warning("the network interface %s could not be read: %s", name, error)
            continue
        for family in (netifaces.AF_INET, netifaces.AF_INET6):
            for entry in addresses.get(family) or ():
                interface = parse_interface(name, entry)
                if interface is not None:
                    found.append(interface)
    return found


def read_by_ifaddr() -> list[Interface]:
    """The same as `read_by_netifaces`, in pure Python and on every system."""
    import ifaddr

    found = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            # IPv6: the address, its flow label, its scope.
            address = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            network = ipaddress.ip_interface(f"{address}/{ip.network_prefix}")
            # On Windows `name` is a UUID; netifaces2 gives the other one too.
            found.append(Interface(adapter.nice_name, network))
    return found


def parse_interface(name: str, entry: Mapping[Any, str]) -> Interface | None:
    """An address as given by netifaces, or None if it cannot be parsed.

    netifaces2 calls the mask "mask", the original "netmask"; some systems append the scope to an
    IPv6 address, and the prefix length to its mask.
    """
    address = entry.get("addr", "").partition("%")[0]
    mask = entry.get("mask") or entry.get("netmask") or ""
    mask, _, length = mask.partition("/")
    try:
        if ":" in address:
            if not length:
                length = str(int(ipaddress.IPv6Address(mask)).bit_count()) if mask else "128"
            return Interface(name, ipaddress.IPv6Interface(f"{address}/{length}"))
        return Interface(name, ipaddress.IPv4Interface(f"{address}/{mask or 32}"))
    except ValueError:
        return None


def _read_neighbours() -> list[str]:
    try:
        with open(_ARP_TABLE, encoding="ascii", errors="replace") as table:
            return parse_arp(table.read())
    except OSError:  # not Linux, or no /proc: order by distance alone
        return []


def parse_arp(table: str) -> list[str]:
    """The addresses in ``/proc/net/arp`` that have answered."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        try:
            if len(fields) >= 4 and int(fields[2], 16) & _COMPLETE:
                found.append(fields[0])
        except ValueError:
            continue
    return found
