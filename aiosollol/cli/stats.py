"""`aiosollol stats`: how the nodes are, and what they were asked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiosollol import OllamaPool
from aiosollol.cli.cluster import registry_of
from aiosollol.cli.loop import run
from aiosollol.cli.measure import Measurement, measure
from aiosollol.cli.nodes import processor_of
from aiosollol.cli.output import Screen, seconds_text, write_json
from aiosollol.core.node import ClusterView


@dataclass(frozen=True, slots=True)
class _Answer:
    view: ClusterView
    stats: dict[str, Any]
    measurement: Measurement | None


def show_stats(nodes: Sequence[str], model: str | None, *, as_json: bool) -> int:
    """Print the table, and return the exit code: 1 if a node is down or cannot be measured."""
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
        screen.line("Requests are counted from the start of a program; --model NAME sends some.")
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
        "requests": answer.stats["total_requests"],
        "errors": answer.stats["failed_requests"],
        "strategy": answer.stats["routing_strategy"],
    }
