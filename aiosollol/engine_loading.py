"""The engines that a pool is to have, loaded by name: the pool does not know them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aiosollol.config.settings import Settings
from aiosollol.errors import MissingExtra
from aiosollol.ports import Engine
from aiosollol.registry import ClusterState
from aiosollol.sharing import LeaseClient

_NEEDS = {"dask": "distributed", "ray": "ray"}


def load_engines(settings: Settings, registry: ClusterState) -> Mapping[str, Engine]:
    """The engines that are turned on, by name. None of them starts anything before it is used.

    Raises MissingExtra for one whose package is not installed.
    """
    names = [name for name in _NEEDS if getattr(settings, f"enable_{name}")]
    return {name: _load(name, settings, registry) for name in names}


def load_sharing(
    engines: Mapping[str, Engine],
    settings: Settings,
    registry: ClusterState,
    probe: Callable[[str], Coroutine[Any, Any, None]],
) -> LeaseClient | None:
    """What shares the nodes with other programs, by the engine that can; None if none is turned on.

    probe: asks a node, by name, how it is. Nothing is started before `Sharing.run`.
    """
    if "ray" not in engines:
        return None
    sharing: LeaseClient = _module("ray").make_sharing(engines["ray"], settings, registry, probe)
    return sharing


def check_engine(name: str) -> None:
    """Raises MissingExtra if the package of an engine, "dask" or "ray", is not installed."""
    if find_spec(_NEEDS[name]) is None:
        raise MissingExtra(f"enable_{name}", name)


def _load(name: str, settings: Settings, registry: ClusterState) -> Engine:
    check_engine(name)
    engine: Engine = _module(name).make_engine(settings, registry)
    return engine


def _module(name: str) -> Any:
    # Engines are above the pool, since their workers have pools of their own: an import would point
    # up. Like any plugin, one is found by its name.
    return import_module(f"aiosollol.engines.{name}")
