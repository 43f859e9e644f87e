"""What a batch did, told afterwards: `Embeddings.report`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from aiosollol.core.scheduling.colocation import Finding
from aiosollol.core.scheduling.planner import Plan, Reason


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What one node did in a batch. Durations are seconds.

    items: vectors that came from it. requests: sent to it, failed ones included.
    tokens: prompt tokens of the answered ones, as estimated before they were sent.
    seconds: how long at least one was under way; idle: the rest of the batch.
    wasted: spent on requests whose items another node answered first.
    retries: how many of its requests failed and had to be done again.
    """

    items: int = 0
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    idle: float = 0.0
    wasted: float = 0.0
    retries: int = 0

    def plus(self, other: NodeShare) -> NodeShare:
        """What it did in two batches one after the other, or beside each other."""
        return NodeShare(
            self.items + other.items,
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.idle + other.idle,
            self.wasted + other.wasted,
            self.retries + other.retries,
        )


@dataclass(frozen=True, slots=True)
class EngineNote:
    """Where a batch was computed, and why there.

    name: "local" for this process, "dask" or "ray". workers: how many took part, 0 if local.
    reruns: partitions that were computed again, for a worker that died. dashboard: an URL at which
    people can watch the engine, None if there is none.
    """

    name: str = "local"
    reason: str = ""
    workers: int = 0
    reruns: int = 0
    dashboard: str | None = None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did. ``str(report)`` says it in a line.

    items: texts asked for. unique: different texts among them, each embedded once.
    seconds: the whole time. nodes: per node name, what it did. plan: what was meant to happen, None
    where there was nothing to plan. splits: chunks that were halved to find a bad input.
    copies: requests for items that another node was working on.
    findings: whether nodes on one machine were found to be faster together.
    slices: every chunk, for `to_trace`; none of what an engine did elsewhere.
    engine: where it was computed.
    """

    items: int
    unique: int
    seconds: float
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)
    plan: Plan | None = None
    splits: int = 0
    copies: int = 0
    findings: Sequence[Finding] = ()
    slices: Sequence[Slice] = field(default=(), repr=False)
    engine: EngineNote = EngineNote()

    @property
    def predicted_seconds(self) -> float:
        """What the plan expected `seconds` to be; 0 without a plan."""
        return self.plan.predicted_seconds if self.plan is not None else 0.0

    @property
    def retries(self) -> int:
        return sum(share.retries for share in self.nodes.values())

    @property
    def requests(self) -> int:
        return sum(share.requests for share in self.nodes.values())

    def to_trace(self, path: str | os.PathLike[str]) -> None:
        """Write the batch as Chrome trace events to `path`: open it in Perfetto or a browser.

        Raises OSError if the file cannot be written.
        """
        Path(path).write_text(json.dumps(trace_events(self.slices)), encoding="utf-8")

    def __str__(self) -> str:
        rate = self.items / self.seconds if self.seconds > 0 else 0.0
        shares = ", ".join(f"{name} {share.items}" for name, share in self.nodes.items())
        line = f"{self.items} items in {self.seconds:.2f} s ({rate:.0f}/s): {shares or 'no node'}"
        if self.plan is not None and self.plan.reason is Reason.SAME_MACHINE:
            line += f" ({self.plan.detail})"  # or one would wonder what the others did
        if self.engine.name != "local":
            line += f" ({self.engine.name}, {self.engine.workers} workers)"
        return line


def report_of_one(node: str, items: int, tokens: int, seconds: float) -> BatchReport:
    """The report of a list that was one request to one node. tokens: as the server counted them."""
    share = NodeShare(items=items, requests=1, tokens=tokens, seconds=seconds)
    return BatchReport(items, items, seconds, {node: share})


Outcome = Literal["done", "late", "failed", "cancelled"]

_COLOURS: dict[Outcome, str] = {
    "done": "good",
    "late": "bad",
    "failed": "terrible",
    "cancelled": "grey",
}


class Slice(NamedTuple):
    """One chunk on one node, from being handed out to its end. Times are seconds.

    outcome: "done"; "late" if another node had answered all its items before; "failed";
    "cancelled" because another node had.
    """

    node: str
    began: float
    ended: float
    items: int
    tokens: float
    outcome: Outcome
    is_copy: bool = False


def trace_events(slices: Iterable[Slice]) -> dict[str, Any]:
    """The JSON object of a trace file, one track per node, times from the first slice on.

    Chunks that are under way on a node at the same time overlap, which one track cannot show, so a
    node has as many tracks as it had chunks at once.
    """
    ordered = sorted(slices, key=lambda each: (each.began, each.ended))
    start = ordered[0].began if ordered else 0.0
    tracks: dict[str, list[tuple[int, float]]] = {}
    events: list[dict[str, Any]] = []
    names: dict[int, tuple[str, int]] = {}
    for each in ordered:
        lanes = tracks.setdefault(each.node, [])
        lane = next((i for i, (_, until) in enumerate(lanes) if until <= each.began), len(lanes))
        if lane == len(lanes):
            lanes.append((len(names), each.ended))
            names[len(names)] = (each.node, lane)
        track, _ = lanes[lane]
        lanes[lane] = (track, each.ended)
        # Both ends are rounded, not the duration: what does not overlap must not begin to.
        began, ended = (round((time - start) * 1e6) for time in (each.began, each.ended))
        events.append(
            {
                "name": f"{'copy of ' if each.is_copy else ''}{each.items} items",
                "cat": each.outcome,
                "ph": "X",
                "pid": 1,
                "tid": track,
                "ts": began,
                "dur": ended - began,
                "cname": _COLOURS[each.outcome],
                "args": {
                    "node": each.node,
                    "items": each.items,
                    "tokens": round(each.tokens),
                    "outcome": each.outcome,
                },
            }
        )
    order = sorted(names, key=names.__getitem__)
    labels = [
        {"name": name, "ph": "M", "pid": 1, "tid": track, "args": args}
        for place, track in enumerate(order)
        for name, args in (
            ("thread_name", {"name": _track_name(*names[track])}),
            ("thread_sort_index", {"sort_index": place}),
        )
    ]
    process = {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "aiosollol batch"}}
    return {"traceEvents": [process, *labels, *events], "displayTimeUnit": "ms"}


def _track_name(node: str, lane: int) -> str:
    return f"{node} ({lane + 1})" if lane else node
