"""Chrome trace events: valid, in microseconds, and readable as tracks."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.report import Slice, trace_events

outcomes = st.sampled_from(["done", "late", "failed", "cancelled"])
slices = st.builds(
    lambda node, began, took, items, outcome, is_copy: Slice(
        node, began, began + took, items, 4.0 * items, outcome, is_copy
    ),
    st.sampled_from(["a", "b", "a b", "node-10", "node-2"]),
    st.floats(0.0, 1e5),
    st.floats(0.0, 100.0),
    st.integers(1, 256),
    outcomes,
    st.booleans(),
)


def done(node: str, began: float, ended: float, items: int = 4) -> Slice:
    return Slice(node, began, ended, items, 10.0 * items, "done")


def complete(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def track_names(trace: dict[str, Any]) -> dict[int, str]:
    """Track -> its name, in the order in which a viewer shows them."""
    labels = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    names = {e["tid"]: e["args"]["name"] for e in labels if e["name"] == "thread_name"}
    order = {e["tid"]: e["args"]["sort_index"] for e in labels if e["name"] == "thread_sort_index"}
    assert names.keys() == order.keys()
    return {track: names[track] for track in sorted(names, key=order.__getitem__)}


def test_times_are_microseconds_from_the_first_slice_on() -> None:
    trace = trace_events([done("a", 100.5, 100.75), done("a", 100.0, 100.5)])
    assert [(event["ts"], event["dur"]) for event in complete(trace)] == [
        (0, 500_000),
        (500_000, 250_000),
    ]
    assert trace["displayTimeUnit"] == "ms"


def test_a_slice_tells_what_it_was() -> None:
    (event,) = complete(trace_events([Slice("a", 1.0, 2.0, 3, 20.4, "late", is_copy=True)]))
    assert event["name"] == "copy of 3 items"
    assert event["cat"] == "late"
    assert event["args"] == {"node": "a", "items": 3, "tokens": 20, "outcome": "late"}


@pytest.mark.parametrize(
    ("outcome", "colour"),
    [("done", "good"), ("late", "bad"), ("failed", "terrible"), ("cancelled", "grey")],
)
def test_an_outcome_has_its_colour(outcome: Any, colour: str) -> None:
    (event,) = complete(trace_events([Slice("a", 0.0, 1.0, 1, 1.0, outcome)]))
    assert event["cname"] == colour


def test_a_node_has_a_track_for_each_chunk_that_it_had_at_once() -> None:
    trace = trace_events(
        [done("b", 0, 2), done("a", 0, 2), done("a", 1, 3), done("a", 2, 4), done("b", 2, 3)]
    )
    assert list(track_names(trace).values()) == ["a", "a (2)", "b"]


def test_nothing_is_a_valid_trace() -> None:
    trace = trace_events([])
    assert complete(trace) == []
    assert [event["name"] for event in trace["traceEvents"]] == ["process_name"]


@settings(deadline=None)
@given(st.lists(slices, max_size=40))
def test_every_slice_is_there_and_tracks_never_overlap(given: list[Slice]) -> None:
    trace = json.loads(json.dumps(trace_events(given)))
    events = complete(trace)
    assert len(events) == len(given)
    names = track_names(trace)
    for track, on_track in itertools.groupby(
        sorted(events, key=lambda e: (e["tid"], e["ts"], e["dur"])), key=lambda e: e["tid"]
    ):
        sequence = list(on_track)
        # One node to a track, and the track is named for it.
        (node,) = {event["args"]["node"] for event in sequence}
        assert names[track] == node or names[track].startswith(f"{node} (")
        for before, after in itertools.pairwise(sequence):
            assert before["ts"] + before["dur"] <= after["ts"]
    assert all(isinstance(e[key], int) and e[key] >= 0 for e in events for key in ("ts", "dur"))


@settings(deadline=None)
@given(st.lists(slices, max_size=40))
def test_the_tracks_of_a_node_are_one_group(given: list[Slice]) -> None:
    trace = trace_events(given)
    owners = {event["tid"]: event["args"]["node"] for event in complete(trace)}
    shown = [owners[track] for track in track_names(trace)]
    groups = [node for node, _ in itertools.groupby(shown)]
    assert sorted(groups) == sorted({each.node for each in given})
