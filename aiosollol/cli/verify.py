"""`aiosollol verify`: whether all nodes give the same vectors for the same texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from aiosollol import OllamaPool
from aiosollol.cli.cluster import registry_of
from aiosollol.cli.loop import run
from aiosollol.cli.nodes import absent
from aiosollol.cli.output import Screen, write_json
from aiosollol.core.agreement import Agreement
from aiosollol.core.node import ClusterView


def show_agreement(nodes: Sequence[str], model: str, *, as_json: bool) -> int:
    """Print how well the nodes agree, and return the exit code: 1 if one differs, or is silent."""
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
        screen.line(f"{name} takes no part: {why}", style="yellow")
    if agreement.reference:
        screen.line(
            f"The numbers are the smallest cosine to the vectors of {agreement.reference}; "
            "from 0.999 on they count as the same."
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
