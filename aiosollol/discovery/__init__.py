"""Finds Ollama servers on the network: ``async for node in discover(): ...``"""

from __future__ import annotations

from typing import Unpack

from aiosollol.core.address import Address
from aiosollol.discovery.options import SearchArguments, SearchOptions
from aiosollol.discovery.search import Search

__all__ = ["Search", "discover", "discover_ollama_nodes"]


def discover(**options: Unpack[SearchArguments]) -> Search:
    """A search for Ollama servers, which yields a `Discovered` for each as soon as it answers.

    ::

        async for node in discover():
            print(node.url, node.version, node.models)

    Probed concurrently: ``OLLAMA_HOST``, the URLs in `known`, this machine, nodes that announce
    themselves by zeroconf, and every address of the private IPv4 networks of this machine. Each
    server is yielded once, at the address by which others reach it. Leaving early closes every
    socket; use ``async with discover() as search`` for `Search.skipped` and its other figures.

    timeout: seconds for each address, and for listening to announcements; 0.5 by default.
    ports: to probe on this machine and in networks; 11434 by default.
    subnets: networks to sweep (CIDRs), instead of those of this machine's interfaces. They may be
    public or lead to containers, and have up to 65,536 addresses.
    allow: if given, other addresses are neither swept nor believed when announced.
    deny: addresses that are never probed.
    trusted: addresses, CIDRs, host names, or SHA-256 fingerprints of certificates; then no other
    server is asked for its models. Any host in a network can pretend to be a node and read prompts.
    exclude_localhost: True leaves out loopback addresses, but not this machine's own address.
    auto_resolve_docker: False reports a node in a container of this machine at its container
    address instead of the address by which others reach it.
    discover_all_nodes: False stops at the first; ``OLLAMA_HOST`` has precedence.
    use_zeroconf, use_scan: False turns off listening to announcements, or sweeping networks.
    max_open: sockets open at once, 256 by default; at most a third of the file limit.
    max_addresses: larger networks are not swept, unless in `subnets`; the default is a /22.
    environ: where ``OLLAMA_HOST`` is looked up; the environment by default.

    Raises InvalidInput at once for an invalid argument.
    """
    return Search(SearchOptions.parse(**options))


async def discover_ollama_nodes(
    timeout: float = 0.5,
    exclude_localhost: bool = False,
    auto_resolve_docker: bool = True,
    discover_all_nodes: bool = True,
) -> list[dict[str, str]]:
    """What `discover` finds, as ``[{"host": "10.9.66.154", "port": "11434"}, ...]``.

    The server in ``OLLAMA_HOST`` is first, if it answers; the others follow in the order of their
    answers. Raises InvalidInput as `discover` does.
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
