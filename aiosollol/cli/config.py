"""`aiosollol config`: shows each setting and where its value came from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from aiosollol.cli.base import Screen, write_json
from aiosollol.config.files import default_nodes_path, find_nodes_file, load_nodes, settings_path
from aiosollol.config.resolve import Resolved, resolve
from aiosollol.config.settings import TABLE, shown
from aiosollol.core.address import parse_ollama_host
from aiosollol.errors import ConfigError, InvalidInput


class _Nodes(NamedTuple):
    """The node file, if there is one, and the number of its nodes.

    named: the node in OLLAMA_HOST, which overrides the file; "" if not set.
    """

    path: Path | None
    nodes: int
    named: str


def show_config(as_json: bool) -> int:
    """Print every setting and the files that were read, and return the exit code 0.

    Raises ConfigError, before anything is printed, for an invalid setting or file.
    """
    resolved = resolve({})
    path = find_nodes_file()
    # Only the count: a node file may hold tokens.
    nodes = _Nodes(path, len(load_nodes(path)) if path is not None else 0, _named())
    if as_json:
        write_json(_as_dict(resolved, nodes), sys.stdout)
    else:
        _print_table(resolved, nodes)
    return 0


def _named() -> str:
    host = os.environ.get("OLLAMA_HOST", "").strip()
    if not host:
        return ""
    try:
        return parse_ollama_host(host).url
    except InvalidInput as error:
        raise ConfigError(f"OLLAMA_HOST: {error}", source="OLLAMA_HOST") from error


def _print_table(resolved: Resolved, nodes: _Nodes) -> None:
    screen = Screen(sys.stdout)
    rows = [
        (name, shown(origin.value), origin.source, TABLE[name].about)
        for name, origin in resolved.origins.items()
    ]
    screen.table(("setting", "value", "from", "what it is"), rows)
    screen.line()
    if resolved.path is None:
        screen.line(f"settings file: none; {settings_path()} would be read")
    else:
        screen.line(f"settings file: {resolved.path}")
    if nodes.path is None:
        screen.line(f"nodes file: none; {default_nodes_path()} would be read")
    else:
        count = "1 node" if nodes.nodes == 1 else f"{nodes.nodes:,} nodes"
        screen.line(f"nodes file: {nodes.path} ({count})")
    if nodes.named:
        screen.line(f"OLLAMA_HOST: {nodes.named} is used instead of the nodes file")
    for name, guess in resolved.strangers.items():
        hint = f": did you mean {guess}?" if guess else ", and has no effect"
        screen.line(f"{name} is not a setting{hint}", style="yellow")


def _as_dict(resolved: Resolved, nodes: _Nodes) -> dict[str, Any]:
    return {
        "settings": {
            name: {
                "value": origin.value,
                "source": origin.source,
                "default": TABLE[name].default,
                "variable": TABLE[name].variable,
                "description": TABLE[name].about,
            }
            for name, origin in resolved.origins.items()
        },
        "settings_file": resolved.path,
        "nodes_file": None if nodes.path is None else str(nodes.path),
        "nodes": nodes.nodes if nodes.path is not None else None,
        "ollama_host": nodes.named or None,
        "unknown_variables": dict(resolved.strangers),
    }
