"""Whom a search may believe: anybody, or only what the user lists."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from aiosollol.core.networks import IPAddress, IPNetwork
from aiosollol.core.redaction import safe_repr
from aiosollol.errors import InvalidInput

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}(?<!-)")


@dataclass(frozen=True, slots=True)
class Trust:
    """What a user trusts: networks, host names, and fingerprints of certificates."""

    networks: tuple[IPNetwork, ...] = ()
    names: tuple[str, ...] = ()
    fingerprints: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Trust:
        """Read addresses, CIDRs, host names, and SHA-256 fingerprints with or without "sha256:".

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
        """The same with the addresses of the names, as this machine's own resolver has them.

        A name that has none within `timeout` seconds is trusted nowhere. What an announcement
        says of its own name proves nothing and is not asked.
        """
        found = await asyncio.gather(*(addresses_of(name, timeout) for name in self.names))
        networks = (ipaddress.ip_network(each.partition("%")[0]) for ips in found for each in ips)
        return Trust((*self.networks, *networks), self.names, self.fingerprints)

    def lists(self, address: IPAddress) -> bool:
        """Whether the address is trusted, so that no certificate is needed."""
        return any(address in network for network in self.networks)


async def addresses_of(host: str, timeout: float) -> list[str]:
    """The IP addresses of a host, in the order of the resolver; none if it does not answer.

    Of an IP address itself, without asking anybody.
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
    except (OSError, UnicodeError):  # TimeoutError is one; a name can be too long for IDNA
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in answers))
