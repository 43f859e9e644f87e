"""How much a node gets at once."""

from __future__ import annotations

from typing import NamedTuple

from aiosollol.core.scheduling.cost import Cost

MIN_CHUNK_SECONDS = 0.01

_PROBE_TOKENS = 200.0
_PROBE_ITEMS = 16
_EXTRAPOLATION = 8.0
"""How far beyond the largest answer seen a prediction is trusted."""
_SHARE_DIVISOR = 2.0
"""A chunk is at most this fraction of what a node will still do, so that plans can change."""
_CHUNKS_PER_NODE = 8
"""In a short batch chunks are shorter than usual: what one node is late with stays a small part."""
_FLOOR_OVERHEADS = 16.0
"""Chunks are not cut below this many overheads: then requests would cost more than they balance."""


class Portion(NamedTuple):
    """What to take from the queue: up to so many tokens and items, from its long or short end."""

    tokens: float
    items: int
    shortest: bool = False


def probe(*, is_first: bool) -> Portion:
    """For a node of which nothing is known: one short text, then a few.

    Two sizes tell overhead and speed apart, and neither costs much if the node is slow.
    """
    return Portion(0.0, 1, True) if is_first else Portion(_PROBE_TOKENS, _PROBE_ITEMS, True)


def portion(
    cost: Cost,
    left: float,
    longest: float,
    shortest: float,
    *,
    batch_seconds: float,
    chunk_seconds: float,
    max_items: int,
    max_tokens: float,
) -> Portion | None:
    """For a node that has `left` seconds until all is done; None if that is not one item's worth.

    longest, shortest: tokens of the items at the two ends of the queue. batch_seconds: how long the
    whole batch takes, from its start on. chunk_seconds: how long a chunk should take at most.
    """
    floor = max(_FLOOR_OVERHEADS * cost.overhead, MIN_CHUNK_SECONDS)
    seconds = left if left < 2 * floor else max(left / _SHARE_DIVISOR, floor)
    seconds = min(seconds, max(batch_seconds / _CHUNKS_PER_NODE, floor))
    # At least half of a chunk is to be work, as `BatchNodes` and the planner reckon.
    seconds = min(seconds, max(chunk_seconds, 2 * cost.overhead))
    tokens = (seconds - cost.overhead) / cost.seconds_per_token
    tokens = min(tokens, _EXTRAPOLATION * cost.reach, max_tokens)
    share = (left - cost.overhead) / cost.seconds_per_token
    if max(tokens, share) >= longest:
        return Portion(tokens, max_items)
    if share >= shortest:
        return Portion(min(tokens, max_tokens), max_items, True)
    return None
