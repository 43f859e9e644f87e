"""When a node is taken to hang."""

from __future__ import annotations

import pytest

from aiosollol.core.scheduling.batch_nodes import BatchNode, Chunk, Flight, Tally
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.hangs import look

KNOWN = Cost(overhead=0.1, seconds_per_token=0.1, observations=5, reach=1000.0)


def node(
    *flights: tuple[float, float],
    cost: Cost = KNOWN,
    check_at: float | None = None,
    window: int = 2,
) -> BatchNode:
    """A node with chunks in flight, as (start, predicted end), and perhaps a check."""
    made = BatchNode("a", cost, window, 0.0, False, Tally())
    for number, (start, end) in enumerate(flights):
        chunk = Chunk(number, "a", [number], 1.0)
        made.flights[number] = Flight(chunk, start, start, end, begun_at=0.0)
    if check_at is not None:
        chunk = Chunk(99, "a", (), 8.0)
        made.flights[99] = Flight(chunk, check_at, check_at, check_at + 0.9, begun_at=check_at)
    return made


@pytest.mark.parametrize(
    ("given", "now", "expected"),
    [
        pytest.param(node(), 100.0, "", id="nothing in flight"),
        pytest.param(node((0.0, 1.0), (1.0, 2.0)), 3.0, "", id="three times as long"),
        pytest.param(node((0.0, 1.0), (1.0, 2.0)), 3.1, "replace", id="longer"),
        pytest.param(node((0.0, 0.01), (0.01, 0.02)), 0.9, "", id="less than a second"),
        pytest.param(node((0.0, 0.01), (0.01, 0.02)), 1.1, "replace", id="more than a second"),
        pytest.param(node((0.0, 1.0)), 3.1, "check", id="there is room for a check"),
        pytest.param(node((0.0, 1.0), window=1), 99.0, "", id="there is none"),
        pytest.param(node((0.0, 1.0), cost=Cost.unknown()), 4.9, "", id="it may load a model"),
        pytest.param(node((0.0, 1.0), cost=Cost.unknown()), 5.1, "check", id="it may hang"),
        pytest.param(node((0.0, 1.0), check_at=4.0), 6.6, "", id="a check on its way"),
        pytest.param(node((0.0, 1.0), check_at=4.0), 6.8, "replace", id="a check that hangs"),
    ],
)
def test_look(given: BatchNode, now: float, expected: str) -> None:
    assert look(given, now) == expected


def test_a_chunk_that_waits_for_a_slot_does_not_hang() -> None:
    waiting = node((0.0, 1.0), (1.0, 2.0))
    waiting.flights[0].begun_at = float("inf")
    assert look(waiting, 1000.0) == ""


def test_a_lost_node_is_left_alone() -> None:
    lost = node((0.0, 1.0))
    lost.is_lost = True
    assert look(lost, 1000.0) == ""
