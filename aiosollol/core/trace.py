"""A batch as a picture: Chrome trace events, which Perfetto and browsers open.

The format is Google's "Trace Event Format": complete events (``"ph": "X"``) with a start and a
duration in microseconds, one thread track per node, named by a metadata event (``"ph": "M"``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

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
