"""What the operating system knows of the networks around: interfaces, and who was met lately."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiosollol.core.networks import Interface

_log = logging.getLogger("aiosollol.discovery")
_ARP_TABLE = "/proc/net/arp"
_UNREADABLE = (OSError, RuntimeError, ValueError, AssertionError)
"""What netifaces2 and ifaddr raise for a system that does not answer, or oddly."""
_COMPLETE = 0x2  # ATF_COM in linux/if_arp.h: the neighbour has answered


class NetworkNeighbourhood(NamedTuple):
    """The addresses of this machine, the IPv4 neighbours that have answered lately, its name."""

    interfaces: tuple[Interface, ...] = ()
    neighbours: tuple[str, ...] = ()
    host_name: str = ""


async def read_surroundings() -> NetworkNeighbourhood:
    """What this machine knows without sending a packet. Takes a few milliseconds.

    Where the system does not tell, nothing is known: never raises OSError.
    """
    # A netlink socket, a file in /proc, and the first time an import.
    return await asyncio.to_thread(_read)


def _read() -> NetworkNeighbourhood:
    return NetworkNeighbourhood(
        tuple(_read_interfaces()), tuple(_read_neighbours()), socket.gethostname()
    )


def _read_interfaces() -> list[Interface]:
    """The addresses of all interfaces, by the interface's name, IPv4 first."""
    # Both are imported here, so that they are loaded only for a search.
    try:
        try:
            found = read_by_netifaces()
        except ImportError:  # not installed on every platform: see pyproject.toml
            found = read_by_ifaddr()
    except _UNREADABLE as error:
        _log.warning("the network interfaces could not be read, so none is known: %s", error)
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
        except _UNREADABLE as error:  # it can go while it is read
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
    """An address as netifaces gives it, or None if it is none that can be understood.

    netifaces2 calls the mask "mask", the original "netmask"; some systems write the scope of an
    IPv6 address behind it, and the length of its prefix behind the mask.
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
    except OSError:  # not Linux, or no /proc: then the order is by distance alone
        return []


def parse_arp(table: str) -> list[str]:
    """The addresses in the text of ``/proc/net/arp`` that have answered."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        try:
            if len(fields) >= 4 and int(fields[2], 16) & _COMPLETE:
                found.append(fields[0])
        except ValueError:
            continue
    return found
