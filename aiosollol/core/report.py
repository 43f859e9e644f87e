"""What a batch did, told afterwards: `Embeddings.report`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiosollol.core.planner import Plan, Reason
from aiosollol.core.trace import Slice, trace_events
from aiosollol.core.trial import Finding


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
