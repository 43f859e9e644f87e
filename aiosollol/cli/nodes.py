"""`aiosollol nodes`, `stats`, `verify` and `warm`: the nodes' models, health and vectors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.base import Screen, run, seconds_text, write_json
from aiosollol.cli.measure import HOW_FOUND, Measurement, measure, registry_of
from aiosollol.core.agreement import Agreement
from aiosollol.core.node import ClusterView, NodeState, gpu_free, gpu_total
from aiosollol.errors import SollolError

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
        "models": [", ".join(node.model_names) or "-" for node in nodes],
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
        "models": None if node.models is None else list(node.model_names),
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


def show_agreement(nodes: Sequence[str], model: str, *, as_json: bool) -> int:
    """Compare the nodes and return the exit code: 1 if one differs or does not answer."""
    agreement, view = run(_ask(nodes, model, is_quiet=as_json))
    missing = absent(view, model)
    if as_json:
        write_json(_agreement_dict(agreement, missing), sys.stdout)
    else:
        _print(Screen(sys.stdout), agreement, missing)
    is_silent = any(node.is_down for node in view.nodes.values())
    return int(bool(agreement.outliers or agreement.failed or is_silent))


async def _ask(
    nodes: Sequence[str], model: str, *, is_quiet: bool
) -> tuple[Agreement, ClusterView]:
    registry = await registry_of(nodes, Screen(sys.stderr), is_quiet=is_quiet)
    async with OllamaPool(registry, canary=False) as pool:  # it would warn of the same
        await pool.refresh()
        return await pool.verify(model), pool.view


def _print(screen: Screen, agreement: Agreement, missing: dict[str, str]) -> None:
    rows = [
        (
            node.node,
            node.digest[:12] or "unknown",
            f"{node.alone:.6f}",
            f"{node.listed:.6f}",
            "the same" if node.is_enough else "DIFFERENT",
        )
        for node in agreement.nodes
    ]
    header = ("node", "digest", "alone", "in a list", "vectors")
    screen.table(header, rows, right=("alone", "in a list"))
    for name, why in agreement.failed.items():
        screen.line(f"{name} gave no vectors: {why}", style="red")
    for name, why in missing.items():
        screen.line(f"{name} is left out: {why}", style="yellow")
    if agreement.reference:
        screen.line(
            f"The numbers are the smallest cosine to the vectors of {agreement.reference}; "
            "0.999 and above count as the same."
        )
    if agreement.outliers:
        screen.line(
            f"Do not mix vectors of {', '.join(agreement.outliers)} with those of the others: "
            f"pull the same {agreement.model} on every node.",
            style="red",
        )


def _agreement_dict(agreement: Agreement, missing: dict[str, str]) -> dict[str, Any]:
    return {
        "model": agreement.model,
        "reference": agreement.reference or None,
        "nodes": [
            {
                "name": node.node,
                "digest": node.digest or None,
                "alone": node.alone,
                "listed": node.listed,
                "same": node.is_enough,
            }
            for node in agreement.nodes
        ],
        "different": list(agreement.outliers),
        "failed": dict(agreement.failed),
        "absent": missing,
    }


class _Result(NamedTuple):
    """nodes: name -> seconds until the model was loaded, or the error. view: before the load."""

    nodes: dict[str, float | SollolError]
    view: ClusterView


def warm_nodes(nodes: Sequence[str], model: str, *, as_json: bool) -> int:
    """Load `model`, print each node's result, and return the exit code: 1 if one fails."""
    result = run(_warm(nodes, model, is_quiet=as_json))
    missing = absent(result.view, model)
    if as_json:
        write_json({"model": model, **_warm_dict(result), "absent": missing}, sys.stdout)
    else:
        screen = Screen(sys.stdout)
        for name, why in missing.items():
            screen.line(f"{name} is left out: {why}", style="yellow")
    has_failed = any(isinstance(each, SollolError) for each in result.nodes.values())
    return int(has_failed or any(node.is_down for node in result.view.nodes.values()))


async def _warm(nodes: Sequence[str], model: str, *, is_quiet: bool) -> _Result:
    registry = await registry_of(nodes, Screen(sys.stderr), is_quiet=is_quiet)
    screen = Screen(sys.stdout)
    done: dict[str, float | SollolError] = {}

    async def warm(name: str) -> None:
        done.update(await pool.warm(model, [name]))
        if not is_quiet:
            _tell(screen, name, done[name])

    async with OllamaPool(registry) as pool:
        view = await pool.refresh()
        names = [node.name for node in view.having(model)]
        if not names:
            await pool.warm(model)  # raises an error that lists the models of each node
        if names and not is_quiet:
            Screen(sys.stderr).line(f"Loading {model} on {', '.join(names)} ...")
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(warm(name))
    return _Result({name: done[name] for name in names}, view)


def _tell(screen: Screen, name: str, result: float | SollolError) -> None:
    if isinstance(result, SollolError):
        screen.line(f"{name}: failed: {result}", style="red")
    else:
        screen.line(f"{name}: in memory after {seconds_text(result)}")


def _warm_dict(result: _Result) -> dict[str, Any]:
    return {
        "seconds": {n: round(r, 3) for n, r in result.nodes.items() if isinstance(r, float)},
        "failed": {n: str(r) for n, r in result.nodes.items() if isinstance(r, SollolError)},
    }
