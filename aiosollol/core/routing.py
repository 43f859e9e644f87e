"""Which node should have the next live request."""

from __future__ import annotations

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
    return min(
        nodes, key=lambda node: ((node.in_flight + 1) * node.latency, node.in_flight), default=None
    )
