"""The nodes that a command works on: those that it is told, or those that a pool begins with."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence

from aiosollol import NodeRegistry
from aiosollol.beginnings import Beginning, begin
from aiosollol.cli.output import Screen, seconds_text
from aiosollol.config.places import find_nodes_file
from aiosollol.config.resolve import resolve
from aiosollol.errors import NoNodeAvailable
from aiosollol.transport import HttpTransport

HOW_FOUND = {
    "environment": "named by OLLAMA_HOST",
    "known": "known before",
    "zeroconf": "announced",
    "scan": "found",
}
"""How a node was found, by `core.discovered.Source`."""


async def registry_of(
    nodes: Sequence[str], screen: Screen, *, is_quiet: bool = False
) -> NodeRegistry:
    """The nodes that a command line names, or those that a pool takes when it names none.

    Where they come from is told on `screen` unless the user named them. is_quiet: only that the
    network is searched. A search is waited for, to its end. Raises InvalidInput, ConfigError, and
    NoNodeAvailable where a search finds nothing.
    """
    with screen.log():
        # In a thread, because it reads files.
        registry, search = await asyncio.to_thread(_begin, nodes)
        if search is not None:
            why = f"{_origin()}, and" if len(registry) else "No node is named:"
            screen.line(
                f"{why} searching the network for Ollama servers "
                "(SOLLOL_AUTO_DISCOVER=false turns this off) ..."
            )
            began = time.monotonic()
            await registry.discover_and_add_nodes(**search)
            if not len(registry):
                raise NoNodeAvailable("no Ollama server was found on the network", {})
            if not is_quiet:
                took = seconds_text(time.monotonic() - began)
                screen.line(f"Found within {took}: {_names(registry)}")
        elif not nodes and not is_quiet:
            screen.line(f"{_origin()}: {_names(registry)}")
        # Now, so that two names of one server are one node before anything is asked of it.
        await registry.locate()
    return registry


def _begin(nodes: Sequence[str]) -> Beginning:
    return begin(list(nodes) or None, resolve({}), HttpTransport)


def _names(registry: NodeRegistry) -> str:
    return ", ".join(node.name for node in registry)


def _origin() -> str:
    """In words, where `begin` has nodes from that it was not given."""
    if os.environ.get("OLLAMA_HOST", "").strip():
        return "Using the node in OLLAMA_HOST"
    if file := find_nodes_file():
        return f"Using the nodes in {file}"
    return "No node is named, and auto_discover is off, so this machine is used"
