"""`aiosollol nodes` and `aiosollol stats`: the nodes' models, health and request counts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.base import run
from aiosollol.cli.measure import HOW_FOUND, Measurement, measure, registry_of
from aiosollol.cli.output import Screen, seconds_text, write_json
from aiosollol.core.node import ClusterView, NodeState, gpu_free, gpu_total

_GIB = 2**30


def show_nodes(nodes: Sequence[str], *, as_json: bool) -> int:
    """Query and print all nodes, and return the exit code: 1 if one does not answer."""
    view, registry = run(_ask_nodes(nodes, is_quiet=as_json))
    sources = {node.name: node.source for node in registry if node.source is not None}
    if as_json:
        shown = [_node_dict(node, sources.get(node.name)) for node in view.nodes.values()]
        write_json({"nodes": shown}, sys.stdout)
    else:
        _print_nodes(view, sources)
    return int(any(node.is_down for node in view.nodes.values()))


async def _ask_nodes(nodes: Sequence[str], *, is_quiet: bool) -> tuple[ClusterView, NodeRegistry]:
    registry = await registry_of(nodes, Screen(sys.stderr), is_quiet=is_quiet)
    async with OllamaPool(registry) as pool:
        return await pool.refresh(), registry


def _print_nodes(view: ClusterView, sources: Mapping[str, str]) -> None:
    screen = Screen(sys.stdout)
    nodes = view.nodes.values()
    columns = {
        "node": [node.name for node in nodes],
        "answers": ["no" if node.is_down else "yes" for node in nodes],
        "version": [node.version or "-" for node in nodes],
        # Columns known only from an agent or a search are dropped if empty, below.
        "by": [HOW_FOUND.get(sources.get(node.name, ""), "-") for node in nodes],
        "CPU": ["-" if node.cpu_load is None else f"{node.cpu_load:.0%}" for node in nodes],
        "GPU memory": [_gpu_memory(node) for node in nodes],
        "models": [", ".join(node.models or ()) or "-" for node in nodes],
        "loaded": [", ".join(_loaded(node)) or "-" for node in nodes],
    }
    for name in ("by", "CPU", "GPU memory"):
        if set(columns[name]) <= {"-"}:
            del columns[name]
    rows = list(zip(*columns.values(), strict=True))
    screen.table(list(columns), rows, right=("CPU",))
    for node in nodes:
        if node.is_down:
            screen.line(f"{node.name} ({node.spec.url}): {node.error}", style="red")


def processor_of(node: NodeState) -> str:
    """The processor that a node uses: "GPU", "CPU", or "-" with nothing loaded."""
    return "GPU" if node.has_gpu() else "CPU" if node.loaded else "-"


def absent(view: ClusterView, model: str) -> dict[str, str]:
    """The nodes that cannot be used for `model` -> why."""
    having = {node.name for node in view.having(model)}
    return {
        node.name: node.error or "it does not answer"
        if node.is_down
        else "it does not have the model"
        for node in view.nodes.values()
        if node.name not in having
    }


def _gpu_memory(node: NodeState) -> str:
    total, free = gpu_total(node), gpu_free(node)
    if not total:
        return "-"
    known = "?" if free is None else f"{free / _GIB:.1f}"
    return f"{known} of {total / _GIB:.1f} GiB free"


def _loaded(node: NodeState) -> list[str]:
    return [
        f"{model.name} ({model.size_vram / _GIB:.1f} GiB VRAM)" if model.size_vram else model.name
        for model in (node.loaded or {}).values()
    ]


def _node_dict(node: NodeState, source: str | None) -> dict[str, Any]:
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
        "found_by": source,
        "cpu_load": node.cpu_load,
        "gpu_memory_total": gpu_total(node),
        "gpu_memory_free": gpu_free(node),
        "error": node.error or None,
    }


@dataclass(frozen=True, slots=True)
class _Answer:
    view: ClusterView
    stats: dict[str, Any]
    measurement: Measurement | None


def show_stats(nodes: Sequence[str], model: str | None, *, as_json: bool) -> int:
    """Print the table and return the exit code: 1 if a node is down or cannot be measured."""
    answer = run(_ask_stats(nodes, model, is_quiet=as_json))
    measurement = answer.measurement
    if as_json:
        write_json(_stats_dict(answer), sys.stdout)
    else:
        _print_stats(Screen(sys.stdout), model, answer)
    has_failed = measurement is not None and (measurement.failures or not measurement.nodes)
    return int(bool(has_failed) or any(node.is_down for node in answer.view.nodes.values()))


async def _ask_stats(nodes: Sequence[str], model: str | None, *, is_quiet: bool) -> _Answer:
    told = Screen(sys.stderr)
    registry = await registry_of(nodes, told, is_quiet=is_quiet)
    measurement = None
    async with OllamaPool(registry) as pool:
        await pool.refresh()
        if model is not None:
            if not is_quiet:
                told.line("Measuring ...")
            names = [node.name for node in pool.view.having(model)]
            measurement = await measure(registry, names, model)
            await pool.refresh()  # what is loaded now, and whether in a GPU
        return _Answer(pool.view, pool.get_stats(), measurement)


def _rows(answer: _Answer) -> list[dict[str, Any]]:
    rows = []
    for node in answer.view.nodes.values():
        counts = answer.stats["node_performance"][node.spec.key]
        asked = counts["total_requests"]
        rows.append(
            {
                "name": node.name,
                "url": node.spec.url,
                "healthy": not node.is_down,
                "processor": processor_of(node),
                "requests": asked,
                "errors": counts["failed_requests"],
                "average_seconds": counts["latency_ms"] / 1000 if asked else None,
                "in_flight": counts["active_requests"],
                "error": node.error or None,
            }
        )
    return rows


def _print_stats(screen: Screen, model: str | None, answer: _Answer) -> None:
    measurement = answer.measurement
    if measurement is not None:
        screen.line(str(measurement))
    header = ("node", "healthy", "runs on", "requests", "errors", "average", "in flight")
    rows = [
        (
            row["name"],
            "yes" if row["healthy"] else "no",
            row["processor"],
            f"{row['requests']:,}",
            f"{row['errors']:,}",
            "-" if row["average_seconds"] is None else seconds_text(row["average_seconds"]),
            f"{row['in_flight']:,}",
        )
        for row in _rows(answer)
    ]
    screen.table(header, rows, right=header[3:])
    for node in answer.view.nodes.values():
        if node.is_down:
            screen.line(f"{node.name} ({node.spec.url}): {node.error}", style="red")
    if measurement is None:
        screen.line("This command counts only its own requests; --model NAME sends some.")
        return
    for name, error in measurement.failures.items():
        screen.line(f"{name} was not measured: {error}", style="red")
    if not measurement.nodes:
        screen.line(f"No node that answers has the model {model!r}.", style="red")


def _stats_dict(answer: _Answer) -> dict[str, Any]:
    measurement = answer.measurement
    return {
        "nodes": _rows(answer),
        "measured": measurement.as_dict() if measurement is not None else None,
        "requests": answer.stats["attempts"],
        "errors": answer.stats["failed_attempts"],
        "strategy": answer.stats["routing_strategy"],
    }
