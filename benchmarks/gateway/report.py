"""What was measured as tables, and which of the targets are met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.table import Target
from benchmarks.text import aligned

NO_PROXY, FLOOR, OURS, LITELLM, SOLLOL = "no proxy", "floor", "ours", "LiteLLM", "sollol"
EMBED, CHAT, LONE = "embed", "streamed chat", "lone texts"
OPENAI_EMBED, OPENAI_CHAT, WHOLE_CHAT = "/v1 embeddings", "/v1 streamed chat", "whole chat"

FLOOR_RATIO = 1.25
SOLLOL_RATIO, LITELLM_RATIO = 10.0, 50.0
ADDED_P50, ADDED_P99 = 0.0008, 0.002
FASTER = 3.8


@dataclass(slots=True)
class Row:
    """One contestant at one work, a value for each round; times are seconds.

    cpu: of the contestant, for a request, or for a chunk of a stream as it was passed on; 0 where
    there is no proxy.
    rates: requests per second, as fast as it goes. busy: how much of its core it used meanwhile.
    p50, p99: of the first line or the whole answer, one request after another. merged: the part of
    the chunks that came together with another one. at_once: streams that came at the same time, in
    the mean; fewer than were asked for if some had to wait.
    """

    work: str
    name: str
    cpu: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    merged: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)
    failed: int = 0


@dataclass(slots=True)
class Lists:
    """Seconds that a list of `texts` over `nodes` took, a value for each round."""

    texts: int
    nodes: int
    ours: list[float]
    nginx: list[float]

    @property
    def faster(self) -> float:
        return median_ratio(self.nginx, self.ours)


def median_ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of one / the other."""
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


def added(some: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds of one - the other."""
    return statistics.median(a - b for a, b in zip(some, others, strict=True))


def table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal."""
    head = ["work", "contestant", "us CPU", "/ floor", "a second", "core"]
    head += ["p50 ms", "added", "p99 ms", "added", "at once", "merged", "failed"]
    return "\n".join(aligned([head, *(_cells(row, rows) for row in rows)], left=(0, 1)))


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    floor, plain = _find(rows, row.work, FLOOR), _find(rows, row.work, NO_PROXY)
    is_proxy = any(row.cpu)
    has_floor = is_proxy and floor is not None
    has_plain = is_proxy and plain is not None and row.p50
    return [
        row.work,
        row.name,
        _median(row.cpu, "{:,.1f}", 1e6) if is_proxy else "-",
        f"{median_ratio(row.cpu, floor.cpu):.2f}" if has_floor and floor else "-",
        _median(row.rates, "{:,.0f}"),
        _median(row.busy, "{:.0%}") if is_proxy else "-",
        _median(row.p50, "{:.2f}", 1e3),
        f"{1e3 * added(row.p50, plain.p50):.2f}" if has_plain and plain else "-",
        _median(row.p99, "{:.2f}", 1e3),
        f"{1e3 * added(row.p99, plain.p99):.2f}" if has_plain and plain else "-",
        _median(row.at_once, "{:.1f}"),
        _median(row.merged, "{:.0%}"),
        str(row.failed),
    ]


def _median(values: Sequence[float], form: str, times: float = 1.0) -> str:
    return form.format(times * statistics.median(values)) if values else "-"


def table_of_lists(lists: Lists) -> str:
    """How long the lists took, in a line."""
    ours, nginx = statistics.median(lists.ours), statistics.median(lists.nginx)
    return (
        f"a list of {lists.texts:,} texts, {lists.nodes} nodes: {ours:.3f} s through ours, "
        f"{nginx:.3f} s through nginx, {lists.faster:.2f} times faster"
    )


def targets(rows: Sequence[Row], lists: Lists | None) -> list[Target]:
    """What is asked of the gateway, against what was measured."""
    found = []
    for work, what in ((EMBED, "request"), (CHAT, "streamed chunk")):
        ours, floor = _find(rows, work, OURS), _find(rows, work, FLOOR)
        if ours is not None and floor is not None:
            text = f"CPU per {what}: at most {FLOOR_RATIO} times the 40-line proxy"
            ratio = median_ratio(ours.cpu, floor.cpu)
            detail = f"{ratio:.2f}"
            if ours.at_once and floor.at_once:
                at_once = [statistics.median(row.at_once) for row in (ours, floor)]
                detail += " with {:.1f} streams at once, the other with {:.1f}".format(*at_once)
            found.append(Target(text, ratio <= FLOOR_RATIO, detail))
    for work in (EMBED, CHAT):
        ours, plain = _find(rows, work, OURS), _find(rows, work, NO_PROXY)
        if ours is not None and plain is not None:
            for name, limit in (("p50", ADDED_P50), ("p99", ADDED_P99)):
                more = added(getattr(ours, name), getattr(plain, name))
                text = f"{work}: added {name} under {limit * 1e3:g} ms"
                found.append(Target(text, more < limit, f"{more * 1e3:.2f} ms"))
    for work, peer, least in (
        (WHOLE_CHAT, SOLLOL, SOLLOL_RATIO),
        (OPENAI_EMBED, LITELLM, LITELLM_RATIO),
    ):
        ours, its = _find(rows, work, OURS), _find(rows, work, peer)
        if ours is not None and its is not None:
            ratio = median_ratio(its.cpu, ours.cpu)
            text = f"CPU per request: at least {least:g} times below {peer} ({work})"
            found.append(Target(text, ratio >= least, f"{ratio:.1f}"))
    if lists is not None:
        text = f"a list over {lists.nodes} nodes: {FASTER} times faster than through nginx"
        found.append(Target(text, lists.faster >= FASTER, f"{lists.faster:.2f}"))
    failed = sum(row.failed for row in rows)
    found.append(Target("no request failed", failed == 0, f"{failed} failed"))
    return found


def as_json(rows: Sequence[Row], lists: Lists | None) -> dict[str, Any]:
    return {"rows": [asdict(row) for row in rows], "lists": lists and asdict(lists)}


def _find(rows: Sequence[Row], work: str, name: str) -> Row | None:
    return next((row for row in rows if (row.work, row.name) == (work, name)), None)
