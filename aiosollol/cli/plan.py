"""`aiosollol plan` and `route`: how batches would be spread, and where a request would go."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.base import Screen, run, seconds_text, write_json
from aiosollol.cli.measure import Measurement, measure, registry_of, teach_strategies
from aiosollol.cli.nodes import absent, processor_of
from aiosollol.config.settings import DEFAULTS
from aiosollol.core.node import ClusterView
from aiosollol.core.routing.explain import NodeExplanation, RouteExplanation
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.parallelism import (
    DEFAULT_SIZES,
    DEFAULT_TOKENS_PER_ITEM,
    ParallelismEntry,
)
from aiosollol.core.scheduling.planner import (
    PlanOptions,
    Policy,
    Reason,
    SameMachine,
)
from aiosollol.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """Options of `aiosollol plan`. Raises InvalidInput for an unknown policy."""

    model: str
    nodes: Sequence[str] = ()
    sizes: Sequence[int] = DEFAULT_SIZES
    tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM
    policy: Policy = DEFAULTS.policy
    same_machine: SameMachine = DEFAULTS.same_machine
    is_measured: bool = True
    as_json: bool = False

    def __post_init__(self) -> None:
        PlanOptions(policy=self.policy, same_machine=self.same_machine)


@dataclass(frozen=True, slots=True)
class _PlanAnswer:
    """The data to print. `costs`: of the eligible nodes."""

    view: ClusterView
    costs: dict[str, Cost]
    entries: list[ParallelismEntry]
    measurement: Measurement | None


def parse_sizes(text: str) -> list[int]:
    """Parse sizes such as ``10,50``. Raises InvalidInput."""
    try:
        sizes = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InvalidInput(
            f"--sizes must be whole numbers of at least 1, such as 10,50, not {text!r}"
        )
    return sizes


def show_plan(request: PlanRequest) -> int:
    """Print the report and return the exit code: 1 if a node could not be measured."""
    answer = run(_ask_plan(request))
    if request.as_json:
        write_json(_plan_dict(request, answer), sys.stdout)
    else:
        _print_report(Screen(sys.stdout), request, answer)
    return int(bool(answer.measurement and answer.measurement.failures))


async def _ask_plan(request: PlanRequest) -> _PlanAnswer:
    told = Screen(sys.stderr)
    registry = await registry_of(request.nodes, told, is_quiet=request.as_json)
    model, measurement = request.model, None
    async with OllamaPool(
        registry, policy=request.policy, same_machine=request.same_machine
    ) as pool:
        await pool.refresh()
        names = [node.name for node in pool.view.having(model)]
        if request.is_measured and names:
            if not request.as_json:
                told.line("Measuring ...")
            measurement = await measure(registry, names, model)
            if len(measurement.failures) == len(names):
                raise next(iter(measurement.failures.values()))
            await pool.refresh()  # what is loaded now, and whether in a GPU
        with told.log():  # warns of nodes left out because their vectors differ
            entries = await pool.parallelism_report(
                model, request.sizes, tokens_per_item=request.tokens_per_item
            )
        names = [node.name for node in pool.view.having(model)]
        return _PlanAnswer(pool.view, _costs(registry, names, model), entries, measurement)


def _costs(registry: NodeRegistry, names: Sequence[str], model: str) -> dict[str, Cost]:
    return {name: registry[name].cost(model) for name in names}


def _print_report(screen: Screen, request: PlanRequest, answer: _PlanAnswer) -> None:
    tokens = request.tokens_per_item
    screen.line(
        f"Batches for {request.model}, {tokens:g} tokens an item, policy {request.policy}",
        style="bold",
    )
    if answer.measurement is not None:
        screen.line(str(answer.measurement))
        for name, error in answer.measurement.failures.items():
            screen.line(f"{name} was not measured: {error}", style="red")
    _print_nodes(screen, request, answer)
    screen.line()
    header = ("items", "mode", "reason", "sequential", "parallel", "recommended", "saved")
    rows = [
        (
            f"{entry.items:,}",
            entry.plan.mode.value,
            entry.plan.reason.value,
            seconds_text(entry.sequential_seconds),
            seconds_text(entry.parallel_seconds),
            entry.recommendation,
            seconds_text(entry.saved_seconds),
        )
        for entry in answer.entries
    ]
    screen.table(header, rows, right=("items", "sequential", "parallel", "saved"))
    screen.line()
    for entry in answer.entries:
        shares = ", ".join(f"{name} {share:,}" for name, share in entry.plan.shares.items())
        screen.line(f"{entry.items:,}: {entry.plan.detail}; {shares}", indent=2)
    for first, others in _trials(answer.entries).items():
        screen.line(
            f"On the machine of {first}: a long batch measures whether it is faster together with "
            f"{', '.join(others)}",
            indent=2,
        )
    if any(entry.plan.reason is Reason.MEASURING for entry in answer.entries):
        screen.line("Times are guesses where speeds are not known.", style="yellow", indent=2)


def _print_nodes(screen: Screen, request: PlanRequest, answer: _PlanAnswer) -> None:
    rows = [
        (
            name,
            processor_of(answer.view.nodes[name]),
            seconds_text(cost.overhead) if cost.observations else "not known",
            seconds_text(cost.seconds_per_token * request.tokens_per_item)
            if cost.observations
            else "not known",
        )
        for name, cost in answer.costs.items()
    ]
    header = ("node", "runs on", "a request", "an item")
    screen.table(header, rows, right=header[2:])
    for name, why in absent(answer.view, request.model).items():
        screen.line(f"{name} is left out: {why}", style="yellow")


def _trials(entries: Sequence[ParallelismEntry]) -> dict[str, list[str]]:
    """The fastest node of a machine -> the other nodes there that may be tried with it."""
    trials: dict[str, list[str]] = {}
    for first, second in dict.fromkeys(pair for entry in entries for pair in entry.plan.trials):
        trials.setdefault(first, []).append(second)
    return trials


def _plan_dict(request: PlanRequest, answer: _PlanAnswer) -> dict[str, Any]:
    return {
        "model": request.model,
        "tokens_per_item": request.tokens_per_item,
        "policy": request.policy,
        "same_machine": request.same_machine,
        "measured": answer.measurement.as_dict() if answer.measurement is not None else None,
        "nodes": {
            name: {
                "request_seconds": cost.overhead,
                "token_seconds": cost.seconds_per_token,
                "answers": cost.observations,
            }
            for name, cost in answer.costs.items()
        },
        "sizes": [_entry_as_dict(entry) for entry in answer.entries],
    }


def _entry_as_dict(entry: ParallelismEntry) -> dict[str, Any]:
    plan = entry.plan
    return {
        "items": entry.items,
        "mode": plan.mode.value,
        "reason": plan.reason.value,
        "detail": plan.detail,
        "sequential_seconds": entry.sequential_seconds,
        "parallel_seconds": entry.parallel_seconds,
        "even_split_seconds": plan.even_split_seconds,
        "predicted_seconds": plan.predicted_seconds,
        "recommendation": entry.recommendation,
        "saved_seconds": entry.saved_seconds,
        "speed_ratio": plan.speed_ratio,
        "shares": dict(plan.shares),
        "standby": list(plan.standby),
        "trials": [list(pair) for pair in plan.trials],
    }


KINDS = ("embed", "chat", "generate")

_NEUTRAL = {"queue": 0.0, "load": 0.0, "success rate": 1.0, "pace": 1.0}
_MEANINGS = {
    "expected": "seconds until the answer",
    "queue": "until it could begin",
    "load": "the model load",
    "own": "the request alone",
    "prefill": "of the prompt, as far as it is not cached",
    "decode": "of the expected answer",
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
    explanation, measurement = run(_ask_route(options))
    if options.as_json:
        write_json(_route_dict(options, explanation, measurement), sys.stdout)
    else:
        _print_route(Screen(sys.stdout), explanation, measurement)
    return int(explanation.chosen is None)


async def _ask_route(options: RouteOptions) -> tuple[RouteExplanation, Measurement | None]:
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


def _print_route(
    screen: Screen, explanation: RouteExplanation, measurement: Measurement | None
) -> None:
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
        own = "own" if "own" in terms else "decode"
        lines.append(f"A new process knows no speeds: a node whose {own} is 0 is untried.")
    return lines


def _route_dict(
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
