"""`aiosollol plan`: shows how batches of several sizes would be spread, their times, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.base import Screen, run, seconds_text, write_json
from aiosollol.cli.measure import Measurement, measure, registry_of
from aiosollol.cli.nodes import absent, processor_of
from aiosollol.config.settings import DEFAULTS
from aiosollol.core.node import ClusterView
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
    answer = run(_ask(request))
    if request.as_json:
        write_json(_as_dict(request, answer), sys.stdout)
    else:
        _print_report(Screen(sys.stdout), request, answer)
    return int(bool(answer.measurement and answer.measurement.failures))


async def _ask(request: PlanRequest) -> _PlanAnswer:
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


def _as_dict(request: PlanRequest, answer: _PlanAnswer) -> dict[str, Any]:
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
