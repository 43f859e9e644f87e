"""The size of a node's next chunk."""

from __future__ import annotations

from typing import NamedTuple

from aiosollol.core.scheduling.cost import Cost

MIN_CHUNK_SECONDS = 0.01

_PROBE_TOKENS = 200.0
_PROBE_ITEMS = 16
_EXTRAPOLATION = 8.0
"""A prediction is trusted up to this multiple of the largest answer seen."""
_SHARE_DIVISOR = 2.0
"""A chunk is at most a node's remaining share divided by this, so that plans can change."""
_CHUNKS_PER_NODE = 8
"""Chunks are shorter in a short batch, so that a late one is a small part of it."""
_FLOOR_OVERHEADS = 16.0
"""Minimum chunk duration in overheads: below it, requests cost more than balancing saves."""


class Portion(NamedTuple):
    """How much to take from the queue: at most `tokens` and `items`, from its long or short end."""

    tokens: float
    items: int
    shortest: bool = False


def probe(*, is_first: bool) -> Portion:
    """The portion for an unmeasured node: one short text first, then a few.

    Two sizes separate overhead from speed, and neither costs much if the node is slow.
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
    """The portion for a node with `left` seconds until the horizon; None if one item takes longer.

    longest, shortest: tokens of the items at the two ends of the queue.
    batch_seconds: duration of the whole batch, from its start.
    chunk_seconds: maximum duration of a chunk.
    """
    floor = max(_FLOOR_OVERHEADS * cost.overhead, MIN_CHUNK_SECONDS)
    seconds = left if left < 2 * floor else max(left / _SHARE_DIVISOR, floor)
    seconds = min(seconds, max(batch_seconds / _CHUNKS_PER_NODE, floor))
    # At least half of a chunk's duration is work; `BatchNodes` and the planner assume the same.
    seconds = min(seconds, max(chunk_seconds, 2 * cost.overhead))
    tokens = (seconds - cost.overhead) / cost.seconds_per_token
    tokens = min(tokens, _EXTRAPOLATION * cost.reach, max_tokens)
    share = (left - cost.overhead) / cost.seconds_per_token
    if max(tokens, share) >= longest:
        return Portion(tokens, max_items)
    if share >= shortest:
        return Portion(min(tokens, max_tokens), max_items, True)
    return None
