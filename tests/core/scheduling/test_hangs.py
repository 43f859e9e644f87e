"""When a node is taken to hang."""

from __future__ import annotations

import pytest

from aiosollol.core.scheduling.batch_nodes import BatchNode, Chunk, Flight, Tally
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.hangs import look

KNOWN = Cost(overhead=0.1, seconds_per_token=0.1, observations=5, reach=1000.0)


def node(
    *flights: tuple[float, float], cost: Cost = KNOWN, check_at: float | None = None
) -> BatchNode:
    """A node with chunks in flight, as (start, predicted end), and perhaps a check."""
    made = BatchNode("a", cost, 2, 0.0, False, Tally())
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
        pytest.param(node(), 100.0, "fine", id="nothing in flight"),
        pytest.param(node((0.0, 1.0), (1.0, 2.0)), 3.0, "fine", id="three times as long"),
        pytest.param(node((0.0, 1.0), (1.0, 2.0)), 3.1, "check", id="longer"),
        pytest.param(node((0.0, 0.01), (0.01, 0.02)), 0.9, "fine", id="less than a second"),
        pytest.param(node((0.0, 0.01), (0.01, 0.02)), 1.1, "check", id="more than a second"),
        pytest.param(node((0.0, 1.0)), 5.9, "fine", id="a lone chunk gets more time"),
        pytest.param(node((0.0, 1.0)), 6.1, "check", id="but not for ever"),
        pytest.param(node((0.0, 1.0), cost=Cost.unknown()), 99.0, "fine", id="it may load a model"),
        pytest.param(node((0.0, 1.0), check_at=4.0), 6.6, "fine", id="a check on its way"),
        pytest.param(node((0.0, 1.0), check_at=4.0), 6.8, "check again", id="a check that hangs"),
    ],
)
def test_look(given: BatchNode, now: float, expected: str) -> None:
    assert look(given, now) == expected


def test_a_chunk_that_waits_for_a_slot_does_not_hang() -> None:
    waiting = node((0.0, 1.0), (1.0, 2.0))
    waiting.flights[0].begun_at = float("inf")
    assert look(waiting, 1000.0) == "fine"


def test_a_lost_node_is_left_alone() -> None:
    lost = node((0.0, 1.0))
    lost.is_lost = True
    assert look(lost, 1000.0) == "fine"
