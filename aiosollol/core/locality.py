"""Find nodes on the same physical machine, and addresses of the same server."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from aiosollol.core.node import NodeSpec

THIS_MACHINE = "localhost"

_DEFAULT_LOOPBACK = ("127.0.0.1", "::1")


class MachineFacts(NamedTuple):
    """Known addresses and machine ids.

    own: every address of this machine's interfaces, including Docker bridges.
    resolved: addresses by host name.
    machines: machine ids by node name, as reported by the nodes' agents or by zeroconf.
    own_machine: the id of this machine.
    """

    own: frozenset[str] = frozenset()
    resolved: Mapping[str, frozenset[str]] = MappingProxyType({})
    machines: Mapping[str, str] = MappingProxyType({})
    own_machine: str = ""


NO_FACTS = MachineFacts()


class Duplicate(NamedTuple):
    """Two nodes that are one server: the address of `kept` also reaches `dropped`."""

    dropped: str
    kept: str


def machine_of(spec: NodeSpec, facts: MachineFacts = NO_FACTS) -> str:
    """The machine of a single node: its label, or else its host.

    Every address of this machine means this machine, loopback or not.
    """
    if spec.machine is not None:
        return spec.machine
    host = _host_of(spec)
    addresses = _addresses_of(host, facts)
    if any(_is_here(address, facts) for address in addresses):
        return THIS_MACHINE
    # A name of one host is that host; a name of several hosts stands for itself.
    return min(addresses) if len(addresses) == 1 else host


def machines_of(specs: Iterable[NodeSpec], facts: MachineFacts = NO_FACTS) -> dict[str, str]:
    """The machines of nodes by node name, for nodes considered together.

    Nodes are on one machine if they share a label or, without labels, an address or a machine id.
    """
    specs = list(specs)
    groups = _Groups()
    for spec in specs:
        node = ("node", spec.name)
        if spec.machine is not None:
            groups.join(node, ("label", spec.machine))
            continue
        groups.join(node, ("at", machine_of(spec, facts)))
        for address in _addresses_of(_host_of(spec), facts):
            groups.join(node, ("at", THIS_MACHINE if _is_here(address, facts) else address))
        told = facts.machines.get(spec.name)
        if told:
            here = told == facts.own_machine
            groups.join(node, ("at", THIS_MACHINE) if here else ("id", told))
    machines: dict[str, str] = {}
    names: dict[tuple[str, str], str] = {groups.find(("at", THIS_MACHINE)): THIS_MACHINE}
    for spec in specs:
        group = groups.find(("node", spec.name))
        machines[spec.name] = names.setdefault(group, machine_of(spec, facts))
    return machines


def duplicates(specs: Sequence[NodeSpec], facts: MachineFacts = NO_FACTS) -> list[Duplicate]:
    """Pairs of nodes that are the same server, with the one to keep.

    Two nodes are one server if scheme, port and path are equal and their hosts resolve to the same
    address, or both are this machine, where a server listens on loopback and the real address
    alike. The real address is kept, since other machines can reach it. Different labels keep nodes
    apart.
    """
    kept: dict[tuple[object, ...], NodeSpec] = {}
    found: list[Duplicate] = []
    for spec in sorted(specs, key=lambda spec: is_loopback(_host_of(spec))):
        address = spec.address
        identity = _server_host(_host_of(spec), facts)
        if identity is None:
            continue
        first = kept.setdefault(
            (address.scheme, address.port, address.path, identity, spec.machine), spec
        )
        if first is not spec:
            found.append(Duplicate(spec.name, first.name))
    return found


def _server_host(host: str, facts: MachineFacts) -> str | None:
    """The address that identifies servers at `host`; None if there is no single one."""
    addresses = _addresses_of(host, facts)
    if any(address in _DEFAULT_LOOPBACK or address in facts.own for address in addresses):
        return THIS_MACHINE
    if any(is_loopback(address) for address in addresses):
        return host  # 127.0.0.2 and 127.0.0.3 can be two servers
    return min(addresses) if len(addresses) == 1 else None


def _host_of(spec: NodeSpec) -> str:
    """The host in canonical form: an IPv6 address has several spellings."""
    host = spec.address.host.lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _addresses_of(host: str, facts: MachineFacts) -> frozenset[str]:
    """The addresses of `host`, or itself if they are unknown or belong to several hosts."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return frozenset(_DEFAULT_LOOPBACK)
    addresses = facts.resolved.get(host, frozenset())
    # A name with several IPv4 addresses is load-balanced: several machines behind one name.
    if addresses and sum(":" not in address for address in addresses) <= 1:
        return addresses
    return frozenset((host,))


def _is_here(host: str, facts: MachineFacts) -> bool:
    return host in facts.own or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether `host` always means this machine, regardless of DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_name(host: str) -> bool:
    """Whether `host` must be resolved by DNS."""
    if is_loopback(host):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


class _Groups:
    """Disjoint sets (union-find)."""

    def __init__(self) -> None:
        self._above: dict[tuple[str, str], tuple[str, str]] = {}

    def find(self, item: tuple[str, str]) -> tuple[str, str]:
        while (above := self._above.get(item, item)) != item:
            item = above
        return item

    def join(self, first: tuple[str, str], second: tuple[str, str]) -> None:
        self._above[self.find(first)] = self.find(second)
