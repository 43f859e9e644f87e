"""Which nodes are one physical machine, and which are even one server under two addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from aiosollol.core.node import NodeSpec

THIS_MACHINE = "localhost"

_DEFAULT_LOOPBACK = ("127.0.0.1", "::1")


class MachineFacts(NamedTuple):
    """What was learned about whose address is whose.

    own: every address of this machine's interfaces, Docker bridges included.
    resolved: host name -> its addresses.
    machines: node name -> what the node itself said of its machine (an id, by its agent or by
    zeroconf). own_machine: the same for this machine.
    """

    own: frozenset[str] = frozenset()
    resolved: Mapping[str, frozenset[str]] = MappingProxyType({})
    machines: Mapping[str, str] = MappingProxyType({})
    own_machine: str = ""


NO_FACTS = MachineFacts()


class Duplicate(NamedTuple):
    """Two nodes that are one server: `dropped` is reached as well by the address of `kept`."""

    dropped: str
    kept: str


def machine_of(spec: NodeSpec, facts: MachineFacts = NO_FACTS) -> str:
    """The machine of a node by itself: its label if it has one, else by its host.

    Every address of this machine is this machine, loopback or not.
    """
    if spec.machine is not None:
        return spec.machine
    host = _host_of(spec)
    addresses = _addresses_of(host, facts)
    if any(_is_here(address, facts) for address in addresses):
        return THIS_MACHINE
    # A name that means one host is that host; one that is spread over several is none of them.
    return min(addresses) if len(addresses) == 1 else host


def machines_of(specs: Iterable[NodeSpec], facts: MachineFacts = NO_FACTS) -> dict[str, str]:
    """Node name -> its machine, for nodes that are seen together.

    Nodes are on one machine if they share a label, or, without labels, an address or a machine id.
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
    """The nodes that are reached by two addresses, each with the one to keep.

    Two entries are one server if scheme, port and path are the same, and their hosts are names of
    one address, or both are this machine: a server listens on loopback and on the real address
    alike. The real address is kept, since others can reach it too. Labels keep them apart.
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
    """The one address by which servers at `host` are told apart, None if there is no telling."""
    addresses = _addresses_of(host, facts)
    if any(address in _DEFAULT_LOOPBACK or address in facts.own for address in addresses):
        return THIS_MACHINE
    if any(is_loopback(address) for address in addresses):
        return host  # 127.0.0.2 and 127.0.0.3 can be two servers
    return min(addresses) if len(addresses) == 1 else None


def _host_of(spec: NodeSpec) -> str:
    """The host, as one of its forms: IPv6 has many."""
    host = spec.address.host.lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _addresses_of(host: str, facts: MachineFacts) -> frozenset[str]:
    """What `host` stands for: its addresses, or itself if they are not known or not of one host."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return frozenset(_DEFAULT_LOOPBACK)
    addresses = facts.resolved.get(host, frozenset())
    # A name with several IPv4 addresses is a balanced one: many machines behind one name.
    if addresses and sum(":" not in address for address in addresses) <= 1:
        return addresses
    return frozenset((host,))


def _is_here(host: str, facts: MachineFacts) -> bool:
    return host in facts.own or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether `host` never leaves this machine, whatever DNS says."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_name(host: str) -> bool:
    """Whether DNS has to tell what `host` is."""
    if is_loopback(host):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


class _Groups:
    """Sets that grow together: union-find."""

    def __init__(self) -> None:
        self._above: dict[tuple[str, str], tuple[str, str]] = {}

    def find(self, item: tuple[str, str]) -> tuple[str, str]:
        while (above := self._above.get(item, item)) != item:
            item = above
        return item

    def join(self, first: tuple[str, str], second: tuple[str, str]) -> None:
        self._above[self.find(first)] = self.find(second)
