"""Finds the Ollama servers around: ``async for node in discover(): ...``"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from aiosollol.core.address import DEFAULT_PORT, Address
from aiosollol.core.networks import MAX_ADDRESSES
from aiosollol.discovery.options import MAX_OPEN, SearchOptions
from aiosollol.discovery.search import Search

__all__ = ["Search", "discover", "discover_ollama_nodes"]


def discover(
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
) -> Search:
    """A search for Ollama servers, which yields each `Discovered` the moment it has answered.

    ::

        async for node in discover():
            print(node.url, node.version, node.models)

    Asked at once: ``OLLAMA_HOST``, the URLs in `known`, this machine, what announces itself by
    zeroconf, and every address of the private IPv4 networks that this machine is attached to.
    Each server is yielded once, by the address under which others reach it. Leaving early closes
    every socket; use ``async with discover() as search`` to see `Search.skipped` and its figures.

    timeout: seconds for each address, and for listening to announcements.
    ports: those that are asked on this machine and in networks.
    subnets: networks to sweep (CIDRs), in place of those of this machine's interfaces. Named here
    they may be public, or lead to containers, and have up to 65,536 addresses.
    allow: other addresses are neither swept nor believed when announced. deny: never asked.
    trusted: addresses, CIDRs, host names, or SHA-256 fingerprints of certificates; then nothing
    else is asked for its models. Anybody in a network can pretend to be a node and read prompts.
    exclude_localhost: loopback addresses are left out; this machine's own address is not.
    auto_resolve_docker: a node in a container of this machine is given by the address under which
    others reach it, if it has one.
    discover_all_nodes: False stops at the first; ``OLLAMA_HOST`` goes before others.
    use_zeroconf, use_scan: whether announcements are listened to, and networks swept.
    max_open: sockets open at once; never more than a third of the file limit.
    max_addresses: larger networks are not swept, unless in `subnets`; the default is a /22.

    Raises InvalidInput at once for an argument that cannot be right.
    """
    options = SearchOptions.parse(
        timeout=timeout,
        ports=ports,
        subnets=subnets,
        known=known,
        allow=allow,
        deny=deny,
        trusted=trusted,
        exclude_localhost=exclude_localhost,
        auto_resolve_docker=auto_resolve_docker,
        discover_all_nodes=discover_all_nodes,
        use_zeroconf=use_zeroconf,
        use_scan=use_scan,
        max_open=max_open,
        max_addresses=max_addresses,
        environ=environ,
    )
    return Search(options)


async def discover_ollama_nodes(
    timeout: float = 0.5,
    exclude_localhost: bool = False,
    auto_resolve_docker: bool = True,
    discover_all_nodes: bool = True,
) -> list[dict[str, str]]:
    """What `discover` finds, as ``[{"host": "10.9.66.154", "port": "11434"}, ...]``.

    The server that ``OLLAMA_HOST`` names is first, if it answers; the others follow in the order
    in which they answered. Raises InvalidInput as `discover` does.
    """
    search = discover(
        timeout=timeout,
        exclude_localhost=exclude_localhost,
        auto_resolve_docker=auto_resolve_docker,
        discover_all_nodes=discover_all_nodes,
    )
    async with search:
        found = [node async for node in search]
    found.sort(key=lambda node: node.source != "environment")
    addresses = (Address.parse(node.url) for node in found)
    return [{"host": address.host, "port": str(address.port)} for address in addresses]
