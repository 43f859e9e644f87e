"""The parallelism report: what would be done with batches of several sizes, and what it saves."""

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
"""About fifty words of English."""


@dataclass(frozen=True, slots=True)
class ParallelismEntry:
    """The report on one batch size. Durations are seconds.

    sequential_seconds: on the best node alone. parallel_seconds: on all nodes that may take part,
    each with its share. plan: what would be done, and why.
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
        """How much sooner the recommended way is done than the other; 0 if it is not."""
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
    """One entry per batch size, in the order given. Raises InvalidInput for a size below 1."""
    options = options or PlanOptions()
    entries = []
    for items in sizes:
        if not isinstance(items, int) or items < 1:
            raise InvalidInput(f"a batch size must be a whole number from 1 on, not {items!r}")
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
    """The original's rule, and the sentence behind it: at least two tasks and two machines.

    machine_of: node name -> the machine it runs on.
    """
    machines = len(set(machine_of.values()))
    nodes = f"{len(machine_of)} node{'s' if len(machine_of) != 1 else ''}"
    where = f"{nodes} on {machines} machine{'s' if machines != 1 else ''}"
    if tasks < 2:
        return False, f"{tasks} task{'s' if tasks != 1 else ''}: nothing to do at the same time"
    if machines < 2:
        why = "one at a time, they would share it" if len(machine_of) > 1 else "there is no other"
        return False, f"{where}: {why}"
    return True, f"{where}: {tasks} tasks can run on them at the same time"
