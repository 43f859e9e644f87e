"""What a batch tells of itself afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aiosollol.core.report import BatchReport, NodeShare, Slice, trace_events
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.planner import BatchShape, Candidate, plan

PLAN = plan([Candidate("a", Cost(0.0, 0.1, observations=3), "a")], BatchShape(100, 100.0))
SLICES = (
    Slice("a", 5.0, 6.0, 60, 240.0, "done"),
    Slice("b", 5.0, 6.5, 40, 160.0, "failed"),
)
REPORT = BatchReport(
    items=100,
    unique=90,
    seconds=8.0,
    nodes={"a": NodeShare(items=60, requests=3, retries=1), "b": NodeShare(items=30, requests=2)},
    plan=PLAN,
    slices=SLICES,
)


def test_sums_over_the_nodes() -> None:
    assert REPORT.requests == 5
    assert REPORT.retries == 1


def test_what_was_predicted_is_what_the_plan_said() -> None:
    assert REPORT.predicted_seconds == PLAN.predicted_seconds == pytest.approx(10.0)


def test_a_report_is_a_sentence() -> None:
    assert str(REPORT) == "100 items in 8.00 s (12/s): a 60, b 30"


def test_a_report_says_how_many_texts_were_cut() -> None:
    assert str(replace(REPORT, truncated=7)) == f"{REPORT}, 7 cut to the context"


def test_a_batch_in_which_nothing_happened() -> None:
    report = BatchReport(0, 0, 0.0)
    assert str(report) == "0 items in 0.00 s (0/s): no node"
    assert (report.predicted_seconds, report.requests, report.retries) == (0.0, 0, 0)
    assert (report.plan, report.findings, report.copies, report.splits) == (None, (), 0, 0)


def test_slices_are_left_out_of_the_repr() -> None:
    assert "Slice" not in repr(REPORT)


@pytest.mark.parametrize("kind", [str, Path])
def test_to_trace_writes_the_events(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "trace.json"
    REPORT.to_trace(kind(path))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written == trace_events(SLICES)
    assert sum(event["ph"] == "X" for event in written["traceEvents"]) == len(SLICES)


def test_a_trace_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        REPORT.to_trace(tmp_path / "none" / "trace.json")
