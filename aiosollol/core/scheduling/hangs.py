"""Find nodes that hang: an answer is so late that the request is probably lost.

Such a node gets a check, in place of its newest chunk if it has no room, and its other chunks are
copied to nodes that work. Nodes compute embeddings in order of arrival, so once the check is
answered the older chunks are lost, and are taken back too. The oldest request is never cancelled
before that: the node may be loading the model for it, and would have to begin again.
"""

from __future__ import annotations

from typing import Literal

from aiosollol.core.scheduling.batch_nodes import BatchNode, Flight

LOOK_SECONDS = 1.0
"""Time between two looks for nodes that hang."""

_HUNG, _LEAST_SECONDS = 3.0, 1.0
"""Times the predicted duration, and seconds, after which a chunk is suspicious."""
_UNKNOWN_SECONDS = 5.0
"""The same on a node that never answered: it is more likely to load the model."""


def look(node: BatchNode, now: float) -> Literal["", "check", "replace"]:
    """What to do about a node: nothing, check it, or check it in place of its newest request."""
    if node.is_lost or not node.flights:
        return ""
    first, newest = _ends(node)
    least = _LEAST_SECONDS if node.cost.observations else _UNKNOWN_SECONDS
    if not _is_late(first, max(first.begun_at, first.starts_at), now, least):
        return ""
    if len(node.flights) < node.window:
        return "check"
    if newest is first or (newest.chunk.is_check and not _is_late(newest, newest.begun_at, now)):
        return ""
    return "replace"


def _ends(node: BatchNode) -> tuple[Flight, Flight]:
    flights = node.flights.values()
    return next(iter(flights)), next(reversed(flights))


def newest(node: BatchNode) -> Flight:
    """The flight that began last."""
    return _ends(node)[1]


def _is_late(flight: Flight, since: float, now: float, least: float = _LEAST_SECONDS) -> bool:
    return now - since > max(least, _HUNG * (flight.due_at - flight.starts_at))
