"""`aiosollol route`: shows which node a live request would go to now, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from aiosollol import OllamaPool
from aiosollol.cli.base import Screen, run, write_json
from aiosollol.cli.measure import Measurement, measure, registry_of, teach_strategies
from aiosollol.core.routing.explain import NodeExplanation, RouteExplanation
from aiosollol.core.scheduling.parallelism import DEFAULT_TOKENS_PER_ITEM
from aiosollol.errors import InvalidInput

KINDS = ("embed", "chat", "generate")

_NEUTRAL = {"ahead": 0.0, "load": 0.0, "success rate": 1.0, "pace": 1.0}
_MEANINGS = {
    "expected": "seconds until the answer",
    "ahead": "until its running requests are done",
    "own": "the request alone",
    "load": "the model load",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteOptions:
    """Options of `aiosollol route`. Raises InvalidInput for an unknown kind.

    tokens: of the prompt.
    strategy: None is that of the settings.
    is_measured: let each node embed a few texts first.
    """

    model: str
    nodes: Sequence[str] = ()
    kind: str = "embed"
    tokens: float = DEFAULT_TOKENS_PER_ITEM
    strategy: str | None = None
    is_measured: bool = True
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInput(f"--kind must be one of {', '.join(KINDS)}, not {self.kind!r}")


def show_route(options: RouteOptions) -> int:
    """Print the decision and return the exit code: 1 if no node is eligible."""
    explanation, measurement = run(_ask(options))
    if options.as_json:
        write_json(_as_dict(options, explanation, measurement), sys.stdout)
    else:
        _print(Screen(sys.stdout), explanation, measurement)
    return int(explanation.chosen is None)


async def _ask(options: RouteOptions) -> tuple[RouteExplanation, Measurement | None]:
    told = Screen(sys.stderr)
    registry = await registry_of(options.nodes, told, is_quiet=options.as_json)
    model, measurement = options.model, None
    async with OllamaPool(registry, routing_strategy=cast(Any, options.strategy)) as pool:
        await pool.refresh()
        names = [node.name for node in pool.view.having(model)]
        if options.is_measured and options.kind == "embed" and names:
            if not options.as_json:
                told.line("Measuring ...")
            measurement = await measure(registry, names, model)
            teach_strategies(registry, names, model)
            await pool.refresh()  # what is in memory now
        kind = cast(Literal["embed", "chat", "generate"], options.kind)
        with told.log():  # warns of nodes left out because their vectors differ
            return await pool.route(model, kind=kind, tokens=options.tokens), measurement


def _print(screen: Screen, explanation: RouteExplanation, measurement: Measurement | None) -> None:
    head, *_ = str(explanation).splitlines()
    screen.line(head, style="bold")
    eligible = [node for node in explanation.nodes if node.is_eligible]
    if eligible:
        terms = _telling_terms(eligible)
        rows = [
            (
                "->" if node.name == explanation.chosen else "",
                node.name,
                *(f"{node.terms[term]:.3g}" for term in terms),
            )
            for node in eligible
        ]
        screen.table(("", "node", *terms), rows, right=terms)
        for line in _legend(terms, measurement):
            screen.line(line)
    for node in explanation.nodes:
        if node.reason:
            verb = "" if node.is_eligible else " is not eligible"
            screen.line(f"{node.name}{verb}: {node.reason}", style="yellow")
    if measurement is not None:
        for name, error in measurement.failures.items():
            screen.line(f"{name} was not measured: {error}", style="red")


def _telling_terms(nodes: Sequence[NodeExplanation]) -> list[str]:
    """The columns: terms that are not neutral for every node."""
    return [
        term
        for term in nodes[0].terms
        if any(node.terms[term] != _NEUTRAL.get(term) for node in nodes)
    ]


def _legend(terms: Sequence[str], measurement: Measurement | None) -> list[str]:
    """The explanation of the columns."""
    if "score" in terms:
        return ["The lowest score is best; it is the sum of the other columns."]
    parts = [f"{term}: {_MEANINGS[term]}" for term in terms if term in _MEANINGS]
    lines = ["; ".join(parts) + "."]
    if measurement is None:
        lines.append("A new process knows no speeds: a node whose own is 0 is untried.")
    return lines


def _as_dict(
    options: RouteOptions, explanation: RouteExplanation, measurement: Measurement | None
) -> dict[str, Any]:
    return {
        "model": explanation.model,
        "kind": options.kind,
        "tokens": options.tokens,
        "strategy": explanation.strategy,
        "chosen": explanation.chosen,
        "waits": explanation.waits,
        "measured": None if measurement is None else measurement.as_dict(),
        "nodes": [_node_as_dict(node) for node in explanation.nodes],
    }


def _node_as_dict(node: NodeExplanation) -> dict[str, Any]:
    return {
        "name": node.name,
        "eligible": node.is_eligible,
        "reason": node.reason or None,
        "terms": node.terms,
    }
