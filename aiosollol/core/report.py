"""Reports of batches: `Embeddings.report`, and `ReplyReport` of many prompts."""

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
    """One node's share of a batch. Durations are seconds.

    items: vectors from this node.
    requests: requests sent to it, including failed ones.
    tokens: prompt tokens of those items, as it counted them.
    seconds: time with at least one request in flight.
    idle: the rest of the batch.
    wasted: time spent on requests whose items another node answered first.
    retries: failed requests that had to be repeated.
    """

    items: int = 0
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    idle: float = 0.0
    wasted: float = 0.0
    retries: int = 0

    def plus(self, other: NodeShare) -> NodeShare:
        """The sum of its shares of two batches."""
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
    """The engine that computed a batch, and why.

    name: "local" for this process, "dask" or "ray".
    reason: why it was chosen.
    workers: number of workers that took part; 0 if local.
    reruns: partitions computed again after a worker died.
    dashboard: URL of the engine's dashboard; None if there is none.
    """

    name: str = "local"
    reason: str = ""
    workers: int = 0
    reruns: int = 0
    dashboard: str | None = None


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The report of a batch. ``str(report)`` summarises it in a line.

    items: texts in the batch.
    unique: distinct texts, each embedded once.
    tokens: prompt tokens of all texts with a vector, as reported by the nodes, duplicates included,
    as in Ollama.
    tokens_are_exact: False if part of `tokens` is estimated: a node reported no count, requests of
    two nodes overlapped in part, or an engine computed duplicate texts.
    truncated: texts that a server appears to have cut to the model's context, duplicates included:
    see `core.truncation`.
    seconds: total duration.
    nodes: share of each node, by name.
    plan: the plan; None if none was needed.
    splits: chunks that were halved to find a bad input.
    copies: requests for items that another node was working on.
    findings: results of measuring whether nodes on one machine are faster together.
    slices: every chunk, for `to_trace`; empty for batches of another engine.
    engine: the engine that computed it.
    """

    items: int
    unique: int
    seconds: float
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)
    plan: Plan | None = None
    splits: int = 0
    copies: int = 0
    tokens: int = 0
    tokens_are_exact: bool = True
    truncated: int = 0
    findings: Sequence[Finding] = ()
    slices: Sequence[Slice] = field(default=(), repr=False)
    engine: EngineNote = EngineNote()

    @property
    def predicted_seconds(self) -> float:
        """The plan's prediction of `seconds`; 0 without a plan."""
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
            line += f" ({self.plan.detail})"  # explains why the others have no share
        if self.truncated:
            line += f", {self.truncated} cut to the context"
        if self.engine.name != "local":
            line += f" ({self.engine.name}, {self.engine.workers} workers)"
        return line


def report_of_one(
    node: str, items: int, tokens: int, seconds: float, truncated: int = 0
) -> BatchReport:
    """The report of a list sent as one request to one node. tokens: as counted by the server."""
    share = NodeShare(items=items, requests=1, tokens=tokens, seconds=seconds)
    return BatchReport(
        items,
        items,
        seconds,
        {node: share},
        tokens=tokens,
        tokens_are_exact=tokens > 0,
        truncated=truncated,
    )


@dataclass(frozen=True, slots=True)
class ReplyReport:
    """The report of many prompts. ``str(report)`` summarises it in a line.

    replies: prompts that were answered.
    failed: prompts that were not.
    seconds: total duration.
    prompt_tokens, reply_tokens: as counted by the nodes.
    nodes: number of replies of each node, by name.
    """

    replies: int = 0
    failed: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    nodes: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of replies per second, of all nodes together."""
        return self.reply_tokens / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {count}" for name, count in self.nodes.items())
        line = (
            f"{self.replies} replies in {self.seconds:.2f} s "
            f"({self.tokens_per_second:.0f} tokens/s): {shares or 'no node'}"
        )
        return f"{line}, {self.failed} failed" if self.failed else line


Outcome = Literal["done", "late", "failed", "cancelled"]

_COLOURS: dict[Outcome, str] = {
    "done": "good",
    "late": "bad",
    "failed": "terrible",
    "cancelled": "grey",
}


class Slice(NamedTuple):
    """One chunk on one node, from its send to its end. Times are seconds.

    outcome: "done"; "late" if another node answered all its items first; "failed"; "cancelled"
    because another node answered them.
    """

    node: str
    began: float
    ended: float
    items: int
    tokens: float
    outcome: Outcome
    is_copy: bool = False


def trace_events(slices: Iterable[Slice]) -> dict[str, Any]:
    """The JSON object of a trace file, with times relative to the first slice.

    A node has one track per chunk that it had in flight at once, since a track cannot show
    overlapping chunks.
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
        # Round both ends, not the duration, so that rounding creates no overlap.
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
