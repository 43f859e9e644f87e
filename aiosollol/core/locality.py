"""Which nodes are one physical machine, as far as their addresses tell."""

from __future__ import annotations

import ipaddress

from aiosollol.core.node import NodeSpec

THIS_MACHINE = "localhost"


def machine_of(spec: NodeSpec) -> str:
    """The machine of a node: its label if it has one, else its host.

    Every loopback address is this machine.
    """
    if spec.machine is not None:
        return spec.machine
    host = spec.address.host.lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return THIS_MACHINE
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return THIS_MACHINE if address.is_loopback else str(address)
