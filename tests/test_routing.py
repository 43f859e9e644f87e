"""Which node gets a live request."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aiosollol.core.routing import soonest


@dataclass
class Node:
    name: str
    in_flight: int
    latency: float


@pytest.mark.parametrize(
    ("nodes", "chosen"),
    [
        pytest.param([], None, id="none"),
        pytest.param([("a", 0, 0.2), ("b", 0, 0.1)], "b", id="the faster"),
        pytest.param([("a", 3, 0.1), ("b", 0, 0.2)], "b", id="the slower, if the faster is busy"),
        pytest.param([("a", 1, 0.1), ("b", 0, 0.2)], "b", id="equally soon: the less busy"),
        pytest.param([("a", 0, 0.1), ("b", 5, 0.0)], "b", id="one that never answered is tried"),
        pytest.param([("a", 2, 0.0), ("b", 1, 0.0)], "b", id="of those the less busy"),
        pytest.param([("a", 0, 0.1), ("b", 0, 0.1)], "a", id="the first of equals"),
    ],
)
def test_soonest(nodes: list[tuple[str, int, float]], chosen: str | None) -> None:
    node = soonest([Node(*each) for each in nodes])
    assert (node and node.name) == chosen
