"""`client_of`: the client of an address. `ClientTotals`: a number for each client."""

from __future__ import annotations

import ipaddress


class ClientTotals(dict[str, int]):
    """A number for each client; 0, and not kept, for those without one."""

    def __missing__(self, client: str) -> int:
        return 0

    def add(self, client: str, number: int) -> None:
        """Add a number, which may be negative."""
        total = self[client] + number
        if total:
            self[client] = total
        else:
            self.pop(client, None)


def client_of(address: str) -> str:
    """The client that an address belongs to: itself, or its /64 for IPv6, as one host has that."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
