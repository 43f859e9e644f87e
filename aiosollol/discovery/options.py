"""`SearchOptions` and `Trust`: what a search does, and which servers it trusts."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from aiosollol.core.address import DEFAULT_PORT, Address, parse_ollama_host
from aiosollol.core.networks import (
    MAX_ADDRESSES,
    IPAddress,
    IPNetwork,
    SweepOptions,
    parse_networks,
    parse_subnets,
)
from aiosollol.core.redaction import safe_repr
from aiosollol.errors import ConfigError, InvalidInput

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}(?<!-)")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a user trusts: networks, host names, and certificate fingerprints."""

    networks: tuple[IPNetwork, ...] = ()
    names: tuple[str, ...] = ()
    fingerprints: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Trust:
        """Parse addresses, CIDRs, host names, and SHA-256 fingerprints with or without "sha256:".

        Raises InvalidInput, which says what to write.
        """
        if isinstance(entries, str):
            shown = safe_repr(entries)
            raise InvalidInput(f"trusted must be a list, not a string: write [{shown}]")
        networks, names, fingerprints = [], [], set()
        for entry in entries:
            text = entry.strip() if isinstance(entry, str) else ""
            digits = text.lower().removeprefix("sha256:").replace(":", "")
            if _FINGERPRINT.fullmatch(digits):
                fingerprints.add(digits)
                continue
            try:
                networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                if not _NAME.fullmatch(text) or re.fullmatch(r"[0-9.]+", text):
                    raise InvalidInput(
                        f"{safe_repr(entry)} in trusted is not understood; write an address "
                        "(10.0.0.7), a network (10.0.0.0/24), a host name (gpu-box), or the "
                        "SHA-256 of a certificate (sha256: and 64 hexadecimal digits), without "
                        "scheme and port"
                    ) from None
                names.append(text)
        return cls(tuple(networks), tuple(names), frozenset(fingerprints))

    async def resolved(self, timeout: float) -> Trust:
        """The same, with host names resolved by this machine's resolver.

        A name that does not resolve within `timeout` seconds is not trusted. Announcements are not
        consulted: they prove nothing about names.
        """
        found = await asyncio.gather(*(addresses_of(name, timeout) for name in self.names))
        networks = (ipaddress.ip_network(each.partition("%")[0]) for ips in found for each in ips)
        return Trust((*self.networks, *networks), self.names, self.fingerprints)

    def lists(self, address: IPAddress) -> bool:
        """Whether the address itself is trusted, without a certificate."""
        return any(address in network for network in self.networks)


async def addresses_of(host: str, timeout: float) -> list[str]:
    """The IP addresses of a host, in the resolver's order; none if it does not answer.

    An IP address is returned as is, without a lookup.
    """
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [host]
    try:
        async with asyncio.timeout(timeout):
            answers = await asyncio.get_running_loop().getaddrinfo(
                host, None, type=socket.SOCK_STREAM
            )
    except (OSError, UnicodeError):  # includes TimeoutError; a name can be too long for IDNA
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))


MAX_OPEN = 256
"""Sockets open at once, or a third of the file limit if that is less."""

_MOST_PORTS = 64
_MOST_SECONDS = 60.0


class SearchArguments(TypedDict, total=False):
    """The arguments of `discover`, described there."""

    timeout: float
    ports: Iterable[int]
    subnets: Iterable[str] | None
    known: Iterable[str]
    allow: Iterable[str]
    deny: Iterable[str]
    trusted: Iterable[str] | None
    exclude_localhost: bool
    auto_resolve_docker: bool
    discover_all_nodes: bool
    use_zeroconf: bool
    use_scan: bool
    max_open: int
    max_addresses: int
    environ: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The arguments of `discover`, checked and parsed."""

    timeout: float
    ports: tuple[int, ...]
    sweep: SweepOptions
    named: Address | None
    known: tuple[Address, ...]
    trust: Trust | None
    exclude_localhost: bool
    auto_resolve_docker: bool
    discover_all_nodes: bool
    use_zeroconf: bool
    use_scan: bool
    max_open: int

    @classmethod
    def parse(
        cls,
        *,
        timeout: float = 0.5,
        ports: Iterable[int] = (DEFAULT_PORT,),
        subnets: Iterable[str] | None = None,
        known: Iterable[str] = (),
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        trusted: Iterable[str] | None = None,
        exclude_localhost: bool = False,
        auto_resolve_docker: bool = True,
        discover_all_nodes: bool = True,
        use_zeroconf: bool = True,
        use_scan: bool = True,
        max_open: int = MAX_OPEN,
        max_addresses: int = MAX_ADDRESSES,
        environ: Mapping[str, str] = os.environ,
    ) -> SearchOptions:
        """Check and parse the arguments of `discover`. Raises InvalidInput."""
        if not (_is_number(timeout) and 0 < timeout <= _MOST_SECONDS):
            raise InvalidInput(
                f"timeout must be a number of seconds above 0 and at most {_MOST_SECONDS:g}, "
                f"not {timeout!r}"
            )
        for what, number in (("max_open", max_open), ("max_addresses", max_addresses)):
            if not (isinstance(number, int) and not isinstance(number, bool) and number >= 1):
                raise InvalidInput(f"{what} must be a whole number of at least 1, not {number!r}")
        allowed = parse_networks("allow", allow)
        return cls(
            timeout=float(timeout),
            ports=_checked_ports(ports),
            sweep=SweepOptions(
                subnets=None if subnets is None else parse_subnets(subnets),
                allow=allowed or None,
                deny=parse_networks("deny", deny),
                max_addresses=max_addresses,
            ),
            named=_read_ollama_host(environ),
            known=tuple(dict.fromkeys(map(Address.parse, known))),
            trust=None if trusted is None else Trust.parse(trusted),
            exclude_localhost=exclude_localhost,
            auto_resolve_docker=auto_resolve_docker,
            discover_all_nodes=discover_all_nodes,
            use_zeroconf=use_zeroconf,
            use_scan=use_scan,
            max_open=max_open,
        )


def _checked_ports(ports: Iterable[int]) -> tuple[int, ...]:
    checked = tuple(dict.fromkeys(ports))
    for port in checked:
        if not (isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536):
            raise InvalidInput(f"{port!r} in ports is not a port; write one like {DEFAULT_PORT}")
    if not 0 < len(checked) <= _MOST_PORTS:
        raise InvalidInput(f"ports must be 1 to {_MOST_PORTS} numbers, not {len(checked)}")
    return checked


def _read_ollama_host(environ: Mapping[str, str]) -> Address | None:
    text = environ.get("OLLAMA_HOST", "")
    if not text.strip().strip("\"'"):
        return None
    try:
        return parse_ollama_host(text)
    except InvalidInput as error:
        raise ConfigError(f"OLLAMA_HOST: {error}", source="OLLAMA_HOST") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
