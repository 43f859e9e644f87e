"""`aiosollol nodes`: which nodes answer, and what each has."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from aiosollol import OllamaPool
from aiosollol.cli.loop import run
from aiosollol.cli.output import Screen, write_json
from aiosollol.core.node import ClusterView, NodeState

_GIB = 2**30


def show_nodes(nodes: Sequence[str], *, as_json: bool) -> int:
    """Ask every node, print what is known, and return the exit code: 1 if one does not answer."""
    view = run(_ask(nodes))
    if as_json:
        write_json({"nodes": [_as_dict(node) for node in view.nodes.values()]}, sys.stdout)
    else:
        _print_table(view)
    return int(any(node.is_down for node in view.nodes.values()))


async def _ask(nodes: Sequence[str]) -> ClusterView:
    async with OllamaPool(nodes=list(nodes) or None) as pool:
        return await pool.refresh()


def _print_table(view: ClusterView) -> None:
    screen = Screen(sys.stdout)
    rows = [
        (
            node.name,
            "no" if node.is_down else "yes",
            node.version or "-",
            ", ".join(node.models or ()) or "-",
            ", ".join(_loaded(node)) or "-",
        )
        for node in view.nodes.values()
    ]
    screen.table(("node", "answers", "version", "models", "loaded"), rows)
    for node in view.nodes.values():
        if node.is_down:
            screen.line(f"{node.name} ({node.spec.url}): {node.error}", style="red")


def processor_of(node: NodeState) -> str:
    """Where a node computes, as far as it has told: "GPU", "CPU", or "-" with nothing loaded."""
    return "GPU" if node.has_gpu() else "CPU" if node.loaded else "-"


def _loaded(node: NodeState) -> list[str]:
    return [
        f"{model.name} ({model.size_vram / _GIB:.1f} GiB VRAM)" if model.size_vram else model.name
        for model in (node.loaded or {}).values()
    ]


def _as_dict(node: NodeState) -> dict[str, Any]:
    return {
        "name": node.name,
        "url": node.spec.url,
        "answers": not node.is_down,
        "version": node.version or None,
        "models": None if node.models is None else list(node.models),
        "loaded": [
            {"name": model.name, "size": model.size, "size_vram": model.size_vram}
            for model in (node.loaded or {}).values()
        ],
        "error": node.error or None,
    }
