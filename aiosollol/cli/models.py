"""`aiosollol verify` and `aiosollol warm`: compare vectors between nodes, load a model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiosollol import OllamaPool
from aiosollol.cli.base import run
from aiosollol.cli.measure import registry_of
from aiosollol.cli.nodes import absent
from aiosollol.cli.output import Screen, seconds_text, write_json
from aiosollol.core.agreement import Agreement
from aiosollol.core.node import ClusterView
from aiosollol.errors import SollolError


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
    async with OllamaPool(registry) as pool:
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
