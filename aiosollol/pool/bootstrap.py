"""Initial nodes and engines of a pool, and whether it searches for more nodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from aiosollol.cluster.state import ClusterState
from aiosollol.config.files import find_nodes_file
from aiosollol.config.resolve import Resolved
from aiosollol.config.settings import Settings
from aiosollol.core.address import parse_ollama_host
from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.core.redaction import safe_repr
from aiosollol.errors import InvalidInput, MissingExtra
from aiosollol.net.connector import DnsCache
from aiosollol.net.transport import HttpTransport
from aiosollol.pool.registry import NodeRegistry
from aiosollol.ports import Engine, Transport
from aiosollol.sharing import LeaseClient

SMALL_SUBNET = 256
"""Addresses in the largest subnet that a pool sweeps by default: a /24."""

LOCALHOST = "http://127.0.0.1:11434"


class Beginning(NamedTuple):
    """The initial nodes, and the options of a search for more, or None for no search."""

    registry: NodeRegistry
    search: Mapping[str, Any] | None


def begin(
    nodes: Iterable[NodeLike] | NodeRegistry | None,
    resolved: Resolved,
    transport_factory: Callable[[NodeSpec], Transport],
) -> Beginning:
    """The initial nodes of a pool.

    In order of precedence: `nodes`; the server in ``OLLAMA_HOST``; the nodes file; a search, unless
    turned off; localhost. When there are nodes, the network is searched only if the program passes
    ``auto_discover=True``, or, for a nodes file, if a setting turns it on.

    Raises InvalidInput, and ConfigError for the file.
    """
    wanted, source = resolved.origins["auto_discover"]
    is_asked_for = wanted and source == "argument"
    if isinstance(nodes, NodeRegistry):
        searches = nodes.auto_discover or is_asked_for
        return Beginning(nodes, _search(resolved) if searches else None)
    # asyncio's clock, without anyio's lookup of the running loop.
    registry = NodeRegistry(
        clock=time.monotonic,
        names=None if transport_factory is HttpTransport else DnsCache(_nobody),
        transport_factory=transport_factory,
    )
    if nodes is not None:
        for node in _checked(nodes):
            registry.add(node)
        searches = is_asked_for
        if not len(registry) and not searches:
            raise InvalidInput("no nodes: pass at least one, such as http://127.0.0.1:11434")
    elif host := os.environ.get("OLLAMA_HOST", "").strip():
        registry.add(parse_ollama_host(host).url)
        searches = is_asked_for
    elif file := find_nodes_file():
        registry.load_config(file)
        searches = wanted and source != "default"
        if not len(registry):
            searches = wanted
    else:
        searches = wanted
    if not len(registry) and not searches:
        registry.add(LOCALHOST)
    return Beginning(registry, _search(resolved) if searches else None)


def _search(resolved: Resolved) -> dict[str, Any]:
    settings = resolved.settings
    return {
        "timeout": settings.discovery_timeout,
        "trusted": settings.trusted,
        "max_addresses": SMALL_SUBNET,
    }


def _checked(nodes: object) -> Iterable[NodeLike]:
    if isinstance(nodes, str | bytes | Mapping) or not isinstance(nodes, Iterable):
        raise InvalidInput(
            f"nodes must be a list, even of one node: nodes=[{safe_repr(nodes)}]"
            if isinstance(nodes, str | Mapping)
            else f"nodes must be a list of nodes, not {type(nodes).__name__}"
        )
    return nodes


async def _nobody(host: str) -> tuple[str, ...]:
    """Resolve nothing: custom transports may use names that DNS does not know."""
    return ()


_NEEDS = {"dask": "distributed", "ray": "ray"}


def load_engines(settings: Settings, registry: ClusterState) -> Mapping[str, Engine]:
    """The enabled engines, by name. They start nothing before they are used.

    Raises MissingExtra if an engine's package is not installed.
    """
    names = [name for name in _NEEDS if getattr(settings, f"enable_{name}")]
    return {name: _load(name, settings, registry) for name in names}


def load_sharing(
    engines: Mapping[str, Engine],
    settings: Settings,
    registry: ClusterState,
    probe: Callable[[str], Coroutine[Any, Any, None]],
) -> LeaseClient | None:
    """The client that shares nodes with other programs, or None if no enabled engine supports it.

    probe: probes a node, by name. Nothing is started before `LeaseClient.run`.
    """
    if "ray" not in engines:
        return None
    sharing: LeaseClient = _module("ray").make_sharing(engines["ray"], settings, registry, probe)
    return sharing


def check_engine(name: str) -> None:
    """Raise MissingExtra if the package of an engine, "dask" or "ray", is not installed."""
    if find_spec(_NEEDS[name]) is None:
        raise MissingExtra(f"enable_{name}", name)


def _load(name: str, settings: Settings, registry: ClusterState) -> Engine:
    check_engine(name)
    engine: Engine = _module(name).make_engine(settings, registry)
    return engine


def _module(name: str) -> Any:
    # Engines are layers above the pool, as their workers have pools of their own. An import would
    # point up, so engines are loaded by name, like plugins.
    return import_module(f"aiosollol.engines.{name}.engine")
