"""What was measured as a table, and which of the targets are met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.table import Target
from benchmarks.text import aligned

LOCAL, DASK, RAY, AUTO = "in-process", "Dask", "Ray", "auto"
AUTO_WARM, LOCAL_WARM = "auto, Dask runs", "in-process, Dask runs"
LIGHT, HEAVY = "sollol, light", "sollol, Dask"
OURS = (LOCAL, DASK, RAY, AUTO, AUTO_WARM, LOCAL_WARM)

AUTO_RATIO = 1.05
SMALL = 47
"""Texts of the original's example, a PDF."""


@dataclass(slots=True)
class Row:
    """One contestant at one size, a value for each run; times are seconds, memory is bytes.

    texts: of the size. given: how many of them it got, fewer if all would take it too long. bound:
    seconds of `given` at best. ready: from the start of the process until a batch could be computed
    at once. first: that, and the first batch of the size. warm: a later batch, all those of all
    runs. peak: of all its processes together, so far. own: of the program itself. pss: of all after
    the first batch, with what they share counted once. ready_cpu, first_cpu, warm_cpu: processor
    time of all, until ready, for the first batch and for one warm batch. choices: what `auto` has
    chosen, and why, in words. left: processes that it left behind.
    """

    name: str
    texts: int
    given: int
    bound: float
    ready: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)
    pss: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    ready_cpu: list[float] = field(default_factory=list)
    first_cpu: list[float] = field(default_factory=list)
    warm_cpu: list[float] = field(default_factory=list)
    workers: int = 0
    wrong: int = 0
    missing: int = 0
    left: int = 0
    choices: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal: medians."""
    head = ["texts", "contestant", "ready s", "first s", "warm s", "texts/s", "/ bound"]
    head += ["peak MB", "PSS MB", "own MB", "CPU ready s", "us/text", "bad", "left"]
    return "\n".join(aligned([head, *map(_cells, rows)], left=(1,)))


def _cells(row: Row) -> list[str]:
    warm = statistics.median(row.warm) if row.warm else None
    return [
        f"{row.texts:,}" + ("*" if row.given < row.texts else ""),
        row.name,
        _median(row.ready, "{:.2f}"),
        _median(row.first, "{:.2f}"),
        _median(row.warm, "{:.3f}"),
        "-" if warm is None else f"{row.given / warm:,.0f}",
        "-" if warm is None else f"{warm / row.bound:.2f}",
        _median(row.peak, "{:,.0f}", 1e-6),
        _median(row.pss, "{:,.0f}", 1e-6),
        _median(row.own, "{:,.0f}", 1e-6),
        _median(row.ready_cpu, "{:.2f}"),
        _median(row.warm_cpu, "{:,.0f}", 1e6 / row.given),
        str(row.wrong + row.missing),
        str(row.left),
    ]


def _median(values: Sequence[float], form: str, times: float = 1.0) -> str:
    return form.format(times * statistics.median(values)) if values else "-"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the table does not show: bounds, parts of batches, what `auto` chose, what failed."""
    bounds = {row.texts: row for row in rows if row.given == row.texts}
    said = [f"{size:,} texts: bound {row.bound:.3f} s" for size, row in sorted(bounds.items())]
    for row in rows:
        where = f"{row.texts:,} texts, {row.name}"
        if row.given < row.texts:
            said.append(f"* {where}: one batch, of {row.given:,}; warm is that without the start")
        said += [f"{where}: {choice}" for choice in dict.fromkeys(row.choices)]
        said += [f"{where}: {failure}" for failure in row.failures]
        if row.missing or row.wrong:
            said.append(f"{where}: {row.missing:,} vectors missing, {row.wrong:,} wrong")
    return said


def targets(rows: Sequence[Row]) -> list[Target]:
    """What is asked of the engines, against what was measured."""
    ours = [row for row in rows if row.name in OURS]
    bad = [f"{row.texts:,} {row.name}" for row in ours if row.wrong or row.missing or row.failures]
    right = "no vector of ours missing, wrong or out of order"
    found = [Target(right, bool(ours) and not bad, "; ".join(bad) or "all right")]
    for size in sorted({row.texts for row in rows}):
        found += _auto_target(rows, size)
    local = _find(rows, SMALL, LOCAL)
    for name in (LIGHT, HEAVY):
        peer = _find(rows, SMALL, name)
        if local is not None and peer is not None and local.warm and peer.warm:
            first, warm = (
                [statistics.median(getattr(row, what)) for row in (local, peer)]
                for what in ("first", "warm")
            )
            text = f"{SMALL} texts: in-process faster than {name}, with its start and without"
            detail = f"{first[0]:.2f} and {first[1]:.2f} s, {warm[0]:.3f} and {warm[1]:.3f} s"
            found.append(Target(text, first[0] < first[1] and warm[0] < warm[1], detail))
    left = sum(row.left for row in ours)
    found.append(Target("none of ours leaves a process behind", left == 0, f"{left} left"))
    return found


def _auto_target(rows: Sequence[Row], size: int) -> list[Target]:
    """Asked where Dask runs already: a batch that has to wait for it cannot be compared."""
    auto, *others = (_find(rows, size, name) for name in (AUTO_WARM, LOCAL_WARM, DASK))
    if auto is None or not auto.warm or not all(other and other.warm for other in others):
        return []
    best = min((other for other in others if other), key=lambda row: statistics.median(row.warm))
    ratio = statistics.median(auto.warm) / statistics.median(best.warm)
    text = f"{size:,} texts: auto at most {AUTO_RATIO} times the better of in-process and Dask"
    detail = f"{ratio:.2f} times {best.name}, where Dask runs"
    is_met = ratio <= AUTO_RATIO
    if not is_met and not is_slower(auto.warm, best.warm):
        is_met, detail = True, detail + ", which is noise"
    return [Target(text, is_met, detail)]


def is_slower(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether it is hardly chance: three quarters of `some` are longer than as many of `others`."""
    return _quantile(some, 0.25) > _quantile(others, 0.75)


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[round(part * (len(values) - 1))]


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def _find(rows: Sequence[Row], size: int, name: str) -> Row | None:
    return next((row for row in rows if (row.texts, row.name) == (size, name)), None)
