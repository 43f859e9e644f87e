"""Which node should have the next live request."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Load(Protocol):
    """What must be known of a node to choose it: requests in flight, and its usual latency."""

    @property
    def in_flight(self) -> int: ...
    @property
    def latency(self) -> float: ...


LoadT = TypeVar("LoadT", bound=Load)


def soonest(nodes: Iterable[LoadT]) -> LoadT | None:
    """The node expected to answer first, None if there is none.

    A node works on one request after another, so a new one waits for those in flight: expected is
    (in flight + 1) x latency. One that has not answered yet has latency 0 and is tried first.
    """
    best: LoadT | None = None
    best_expected, fewest = math.inf, 0
    for node in nodes:
        in_flight = node.in_flight
        expected = (in_flight + 1) * node.latency
        if (
            best is None
            or expected < best_expected
            or (expected == best_expected and in_flight < fewest)
        ):
            best, best_expected, fewest = node, expected, in_flight
    return best
