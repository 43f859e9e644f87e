"""Find nodes that hang: an answer is so late that the request is probably lost.

The newest chunk of such a node is taken back and a check sent in its place. Nodes compute
embeddings in order of arrival, so once the check is answered the older chunks are lost, and are
taken back too.
"""

from __future__ import annotations

from typing import Literal

from aiosollol.core.scheduling.batch_nodes import BatchNode, Flight

LOOK_SECONDS = 1.0
"""Time between two looks for nodes that hang."""

_HUNG, _LEAST_SECONDS = 3.0, 1.0
"""Times the predicted duration, and seconds, after which a chunk is suspicious."""
_LONE = 2.0
"""Times that again if the node has only one chunk, whose work would be lost."""


def look(node: BatchNode, now: float) -> Literal["fine", "check", "check again"]:
    """What to do about `node`: nothing, check it, or replace a check that hangs as well."""
    if node.is_lost or not node.flights or not node.cost.observations:
        return "fine"
    first, newest = _ends(node)
    if newest.chunk.is_check:
        return "check again" if _is_late(newest, newest.begun_at, now, 1.0) else "fine"
    patience = _LONE if newest is first else 1.0
    since = max(first.begun_at, first.starts_at)
    return "check" if _is_late(first, since, now, patience) else "fine"


def _ends(node: BatchNode) -> tuple[Flight, Flight]:
    flights = node.flights.values()
    return next(iter(flights)), next(reversed(flights))


def newest(node: BatchNode) -> Flight:
    """The flight that began last."""
    return _ends(node)[1]


def _is_late(flight: Flight, since: float, now: float, patience: float) -> bool:
    expected = flight.due_at - flight.starts_at
    return now - since > patience * max(_LEAST_SECONDS, _HUNG * expected)
