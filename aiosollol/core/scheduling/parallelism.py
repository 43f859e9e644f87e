"""The parallelism report: the plan for batches of several sizes, and the time it saves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aiosollol.core.scheduling.planner import (
    BatchShape,
    Candidate,
    Mode,
    Plan,
    PlanOptions,
    plan,
)
from aiosollol.errors import InvalidInput

DEFAULT_SIZES = (10, 50, 100, 200)
DEFAULT_TOKENS_PER_ITEM = 75.0
"""About 50 words of English."""


@dataclass(frozen=True, slots=True)
class ParallelismEntry:
    """The report on one batch size. Durations are seconds.

    plan: the plan that would be used, and why.
    sequential_seconds: predicted on the best node alone.
    parallel_seconds: predicted on all nodes that may take part, each with its share.
    """

    items: int
    plan: Plan
    sequential_seconds: float
    parallel_seconds: float

    @property
    def recommendation(self) -> Literal["sequential", "parallel"]:
        return "sequential" if self.plan.mode is Mode.SINGLE_NODE else "parallel"

    @property
    def saved_seconds(self) -> float:
        """Time saved by the recommendation over the alternative; 0 if none."""
        other = (
            self.parallel_seconds
            if self.recommendation == "sequential"
            else self.sequential_seconds
        )
        return max(0.0, other - self.plan.predicted_seconds)


def parallelism_report(
    view: Sequence[Candidate],
    sizes: Iterable[int] = DEFAULT_SIZES,
    *,
    tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
    options: PlanOptions | None = None,
    verdicts: Mapping[frozenset[str], bool] | None = None,
) -> list[ParallelismEntry]:
    """One entry per batch size, in the given order. Raises InvalidInput for a size below 1."""
    options = options or PlanOptions()
    entries = []
    for items in sizes:
        if not isinstance(items, int) or items < 1:
            raise InvalidInput(f"a batch size must be a whole number of at least 1, not {items!r}")
        shape = BatchShape(items, items * tokens_per_item)
        planned = plan(view, shape, options, verdicts)
        parallel = plan(view, shape, replace(options, force_mode="parallel"), verdicts)
        entries.append(
            ParallelismEntry(
                items, planned, planned.best_single_seconds, parallel.predicted_seconds
            )
        )
    return entries


def is_parallel_worthwhile(tasks: int, machine_of: Mapping[str, str]) -> tuple[bool, str]:
    """The rule of the original design, with its reason: at least two tasks and two machines.

    machine_of: node name -> the machine it runs on.
    """
    machines = len(set(machine_of.values()))
    nodes = f"{len(machine_of)} node{'s' if len(machine_of) != 1 else ''}"
    where = f"{nodes} on {machines} machine{'s' if machines != 1 else ''}"
    if tasks < 2:
        return False, f"{tasks} task{'s' if tasks != 1 else ''}: nothing to run in parallel"
    if machines < 2:
        why = "one at a time, they would share it" if len(machine_of) > 1 else "no other node"
        return False, f"{where}: {why}"
    return True, f"{where}: {tasks} tasks can run in parallel"
