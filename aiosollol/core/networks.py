"""The addresses that discovery probes, in order, and the networks that it skips, with reasons."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Literal, NamedTuple, TypeAlias

from aiosollol.core.redaction import has_at_sign, safe_repr
from aiosollol.errors import InvalidInput

Kind = Literal["lan", "loopback", "link-local", "docker", "vpn"]
IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

MAX_ADDRESSES = 1024
"""The size of a /22. A larger network takes long, so the user must name it."""

MOST_EXPLICIT = 65_536
"""The size of a /16. At 254 silent addresses per half second it takes two minutes."""

_DOCKER = re.compile(r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|veth.*|podman.*|cni.*|virbr.*")
_VPN = re.compile(r"(tun|tap|wg|tailscale|utun|ppp|zt).*")
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918
_SHARED = IPv4Network("100.64.0.0/10")  # RFC 6598: carrier-grade NAT, also used by Tailscale
_WHY_NOT: dict[Kind, str] = {
    "link-local": "{name} has only a link-local address",
    "docker": "{name} leads to containers and virtual machines on this machine, not to a network",
    "vpn": "{name} is a VPN or a provider's network, shared with machines of others",
}


@dataclass(frozen=True, slots=True)
class Interface:
    """An address of this machine with its network, and the name of its interface."""

    name: str
    address: IPv4Interface | IPv6Interface

    @property
    def kind(self) -> Kind:
        return kind_of(self.name, self.address.ip)

    @property
    def network(self) -> IPNetwork:
        return self.address.network


class Skipped(NamedTuple):
    """A network that is not swept, and the reason, for people to read."""

    network: str
    reason: str

    def __str__(self) -> str:
        return f"{self.network} was not searched: {self.reason}"


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Which networks to sweep; `parse_networks` parses the user's input.

    subnets: networks to sweep instead of those of the interfaces; None for the interfaces'.
    allow: only addresses in these networks are probed; None allows all.
    deny: addresses in these networks are not probed.
    max_addresses: maximum size of an interface's network.
    kinds: kinds of interfaces whose networks are swept.
    """

    subnets: tuple[IPv4Network, ...] | None = None
    allow: tuple[IPNetwork, ...] | None = None
    deny: tuple[IPNetwork, ...] = ()
    max_addresses: int = MAX_ADDRESSES
    kinds: frozenset[Kind] = frozenset({"lan"})

    @property
    def most_addresses(self) -> int:
        """Number of addresses: the total of the subnets, or the maximum per interface."""
        if self.subnets is None:
            return self.max_addresses
        return sum(network.num_addresses for network in self.subnets)

    def permits(self, address: IPAddress) -> bool:
        """Whether `allow` and `deny` permit probing `address`."""
        if any(address in network for network in self.deny):
            return False
        return self.allow is None or any(address in network for network in self.allow)


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """The distinct addresses to probe, in order, and the networks skipped."""

    addresses: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()


def kind_of(name: str, address: IPAddress) -> Kind:
    """The kind of an interface, judged by its name and address."""
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if _DOCKER.fullmatch(name):
        return "docker"
    if _VPN.fullmatch(name) or (isinstance(address, IPv4Address) and address in _SHARED):
        return "vpn"
    return "lan"


def parse_networks(what: str, texts: Iterable[str]) -> tuple[IPNetwork, ...]:
    """Parse networks such as ``10.0.0.0/24``, ``10.0.0.7/24`` or a single address.

    what: name of the argument, for errors. Raises InvalidInput, with the expected format.
    """
    if isinstance(texts, str):
        shown = safe_repr(texts)
        raise InvalidInput(f"{what} must be a list of networks, not a string: write [{shown}]")
    found = []
    for text in texts:
        try:
            if not isinstance(text, str | IPv4Network | IPv6Network):
                raise ValueError(f"its type is {type(text).__name__}")  # noqa: TRY301, TRY004
            if has_at_sign(str(text)):
                raise ValueError("it has an at sign")  # noqa: TRY301 - ipaddress would quote it
            found.append(ipaddress.ip_network(str(text).strip(), strict=False))
        except ValueError as error:
            raise InvalidInput(
                f"{safe_repr(text)} in {what} is not a network ({error}); "
                "write it like 192.168.1.0/24, or 192.168.1.7 for a single address"
            ) from error
    return tuple(found)


def parse_subnets(texts: Iterable[str]) -> tuple[IPv4Network, ...]:
    """Parse networks to sweep. Raises InvalidInput for one that is IPv6 or too large."""
    found = []
    for network in parse_networks("subnets", texts):
        if isinstance(network, IPv6Network):
            raise InvalidInput(
                f"{network} in subnets cannot be searched: IPv6 networks are too large; "
                "name the node itself, or let it announce itself with: aiosollol advertise"
            )
        if network.num_addresses > MOST_EXPLICIT:
            raise InvalidInput(
                f"{network} in subnets has {network.num_addresses:,} addresses, more than the "
                f"limit of {MOST_EXPLICIT:,}; write the part of it where nodes can be, "
                f"like {network.network_address}/24"
            )
        found.append(network)
    return tuple(found)


def plan_sweep(
    interfaces: Sequence[Interface], neighbours: Iterable[str], options: SweepOptions
) -> SweepPlan:
    """The addresses to probe, in order: this machine, then `neighbours` (addresses with recent
    traffic), then the others by distance from the machine's own address.

    Networks of interfaces are swept only if they are private and small. Network and broadcast
    addresses are never probed, nor is IPv6.
    """
    # address -> rank; the lowest is probed first
    ranks: dict[int, int] = {}
    near = {int(IPv4Address(each)) for each in neighbours if _is_ipv4(each)}
    own = {int(i.address.ip) for i in interfaces if isinstance(i.address, IPv4Interface)}
    skipped: list[Skipped] = []
    if options.subnets is None:
        networks = list(_attached(interfaces, options, skipped))
        for interface in interfaces:  # our own address, even if its network is too large
            if isinstance(interface.address, IPv4Interface) and interface.kind in options.kinds:
                ranks[int(interface.address.ip)] = -1
    else:
        networks = list(options.subnets)
    for network in networks:
        _rank_hosts(network, own, near, ranks)
    for interface in interfaces:
        if isinstance(interface.network, IPv4Network) and interface.network.prefixlen < 31:
            ranks.pop(int(interface.network.network_address), None)
            ranks.pop(int(interface.network.broadcast_address), None)
    ordered = (IPv4Address(number) for number in sorted(ranks, key=lambda n: (ranks[n], n)))
    if options.allow is None and not options.deny:
        return SweepPlan(tuple(map(str, ordered)), tuple(skipped))
    return SweepPlan(tuple(str(a) for a in ordered if options.permits(a)), tuple(skipped))


def _attached(
    interfaces: Sequence[Interface], options: SweepOptions, skipped: list[Skipped]
) -> Iterator[IPv4Network]:
    """The networks of interfaces that may be swept. The others are added to `skipped`."""
    seen: set[IPNetwork] = set()
    for interface in interfaces:
        network, kind = interface.network, interface.kind
        # Loopback is probed without a sweep, and every IPv6 interface has a link-local address.
        is_plain = kind == "loopback" or (kind == "link-local" and network.version == 6)
        if network in seen or (is_plain and kind not in options.kinds):
            continue
        seen.add(network)
        reason = _why_not(interface, options)
        if reason:
            skipped.append(Skipped(str(network), reason))
        elif isinstance(network, IPv4Network):
            yield network


def _why_not(interface: Interface, options: SweepOptions) -> str:
    network, kind = interface.network, interface.kind
    name_it = f"to search it, name it: subnets=['{network}'], or --subnet {network}"
    if isinstance(network, IPv6Network):
        return (
            "IPv6 networks are too large to search; let nodes in them announce themselves "
            "(aiosollol advertise), or name the nodes"
        )
    if kind not in options.kinds:
        why_not = _WHY_NOT.get(kind, "{name} was not requested").format(name=interface.name)
        return f"{why_not}; {name_it}"
    if network.num_addresses > options.max_addresses:
        part = IPv4Network((interface.address.ip, 24), strict=False)
        return (
            f"it has {network.num_addresses:,} addresses, and more than {options.max_addresses:,} "
            f"are searched only on request; name the part where nodes are: subnets=['{part}'], "
            f"or --subnet {part}"
        )
    is_known = kind != "lan" or any(network.subnet_of(private) for private in _PRIVATE)
    if not is_known and network.num_addresses > 1:
        return f"it is a public network; {name_it}"
    return ""


def _rank_hosts(network: IPv4Network, own: set[int], near: set[int], ranks: dict[int, int]) -> None:
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.prefixlen < 31:  # in a /31 both addresses are hosts (RFC 3021)
        first, last = first + 1, last - 1
    ours = [number for number in own if first <= number <= last]
    far = 1 << 32  # after every neighbour
    for number in range(first, last + 1):
        if number in own:
            rank = -1
        else:
            rank = min((abs(number - our) for our in ours), default=number - first)
            if number not in near:
                rank += far
        ranks[number] = min(rank, ranks.get(number, rank))


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except ValueError:
        return False
    return True


Source = Literal["environment", "known", "zeroconf", "scan"]
"""How a node was found: named by ``OLLAMA_HOST``, known from before, announced, or by a sweep."""


class Discovered(NamedTuple):
    """A server that was verified to be Ollama.

    url: its base URL, as in `Address.url`.
    models: full names.
    seconds: round trip time of its first answer.
    name, machine, agent: its own name, its machine id and the URL of its agent, if announced; else
    "".
    fingerprint: of the certificate by which it was trusted; else "".
    """

    url: str
    version: str
    models: tuple[str, ...]
    source: Source
    seconds: float
    name: str = ""
    machine: str = ""
    fingerprint: str = ""
    agent: str = ""
