"""Shows results: a table, and whether each target is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.text import aligned

WARM_RATIO, COLD_RATIO = 1.03, 1.10
PREDICTION_ERROR = 0.05
_LONG = 1.0
"""Lower bound, in seconds, from which the target ratios apply."""


@dataclass(slots=True)
class Row:
    """One scenario. Durations are seconds; None where there is nothing to compare with.

    error: of the prediction for the warm batch, as a fraction. wrong: texts without their vector.
    chunk_seconds: what the largest chunk takes, where a node died. decision: microseconds.
    """

    name: str
    bound: float
    cold: float
    warm: float
    even: float | None
    single: float | None
    predicted: float
    error: float
    requests: int
    copies: int
    wrong: int = 0
    is_fated: bool = False
    chunk_seconds: float | None = None
    decision: float | None = None

    @property
    def warm_ratio(self) -> float:
        return self.warm / self.bound

    @property
    def cold_ratio(self) -> float:
        return self.cold / self.bound

    @property
    def best_other(self) -> float:
        """The better of the even split and the best node alone."""
        others = [each for each in (self.even, self.single) if each is not None]
        return min(others, default=float("inf"))


@dataclass(slots=True)
class Target:
    """Something that is to be shown, whether it is, and the figures."""

    text: str
    is_met: bool
    detail: str


def table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal."""
    with_decision = any(row.decision is not None for row in rows)
    head = ["scenario", "bound", "cold", "ratio", "warm", "ratio", "even", "single"]
    head += ["plan", "error", "req", "copies", *(["decision"] if with_decision else [])]
    lines = [head]
    for row in rows:
        line = [row.name, _seconds(row.bound)]
        line += [_seconds(row.cold), f"{row.cold_ratio:.3f}"]
        line += [_seconds(row.warm), f"{row.warm_ratio:.3f}"]
        line += [_seconds(row.even), _seconds(row.single), _seconds(row.predicted)]
        line += [f"{row.error:.1%}", str(row.requests), str(row.copies)]
        if with_decision:
            line.append("-" if row.decision is None else f"{row.decision:.1f} us")
        lines.append(line)
    return "\n".join(aligned(lines))


def targets(rows: Sequence[Row]) -> list[Target]:
    """What issue 3 promises, against `rows`."""
    found = [
        at_most(
            f"warm: at most {WARM_RATIO} times the bound, where that is over {_LONG:g} s",
            [(row.name, row.warm_ratio) for row in _long(rows)],
            WARM_RATIO,
        ),
        at_most(
            f"cold: at most {COLD_RATIO:.2f} times",
            [(row.name, row.cold_ratio) for row in _long(rows)],
            COLD_RATIO,
        ),
        at_most(
            "warm: not slower than the better of the even split and the best node alone",
            [(row.name, row.warm / row.best_other) for row in rows],
            1.0,
        ),
    ]
    errors = [row.error for row in rows if not row.is_fated]
    if errors:
        median = statistics.median(errors)
        found.append(
            Target(
                f"warm prediction: median error at most {PREDICTION_ERROR:.0%}",
                median <= PREDICTION_ERROR,
                f"{median:.1%}; worst {max(errors):.1%}",
            )
        )
    for row in rows:
        if row.chunk_seconds is not None:
            extra = row.warm - row.bound
            detail = f"{extra:.3f} s over the bound, a chunk takes {row.chunk_seconds:.3f} s"
            text = "a death costs at most a chunk's time"
            found.append(Target(text, extra <= row.chunk_seconds, detail))
    wrong = sum(row.wrong for row in rows)
    found.append(Target("no text without its vector", wrong == 0, f"{wrong} without"))
    return found


def at_most(
    text: str, values: Sequence[tuple[str, float]], limit: float, *, digits: int = 3
) -> Target:
    """That no value is over `limit`: those that are, by name, or else the worst."""
    missed = [f"{name} {value:.{digits}f}" for name, value in values if value > limit]
    worst = max((value for _, value in values), default=0.0)
    return Target(text, not missed, "; ".join(missed) or f"worst {worst:.{digits}f}")


def print_targets(found: Sequence[Target]) -> None:
    for target in found:
        print(f"{'met   ' if target.is_met else 'MISSED'}  {target.text}: {target.detail}")


def _long(rows: Sequence[Row]) -> list[Row]:
    """Those long enough. Where a node dies, another target says what that may cost."""
    return [row for row in rows if row.bound > _LONG and row.chunk_seconds is None]


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"
