"""Tables of ratios, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.text import aligned


@dataclass(slots=True)
class Row:
    """One comparison: medians of both sides in `unit`, and the median of the paired ratios.

    limit: what `ratio` is to be at most; at least, if `at_least`. spread: the smallest and the
    largest ratio of a round.
    """

    what: str
    against: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    limit: float | None = None
    at_least: bool = False
    spread: tuple[float, float] | None = None

    @property
    def is_met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


@dataclass(slots=True)
class Table:
    """The rows of one benchmark. server: which one answered."""

    number: int
    title: str
    server: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "is_met": row.is_met} for row in self.rows]
        return {**asdict(self), "rows": rows}

    def __str__(self) -> str:
        head = ["what", "against", "unit", "ours", "theirs", "ratio", "rounds", "target", ""]
        shown = aligned([head, *map(_cells, self.rows)], left=(0, 1, 2, 6, 7, 8))
        title = f"{self.number}. {self.title} (server: {self.server})"
        return "\n".join([title, "", *shown, *self.notes, ""])


def _cells(row: Row) -> list[str]:
    sign = ">=" if row.at_least else "<="
    verdict = {None: "", True: "met", False: "MISSED"}[row.is_met]
    return [
        row.what,
        row.against,
        row.unit,
        _number(row.ours),
        _number(row.theirs),
        _number(row.ratio),
        "" if row.spread is None else f"{_number(row.spread[0])}-{_number(row.spread[1])}",
        "" if row.limit is None else f"{sign} {row.limit:g}",
        verdict,
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def rows_to_json(tables: Sequence[Table]) -> list[dict[str, Any]]:
    return [table.as_json() for table in tables]
