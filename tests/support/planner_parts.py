"""Nodes and batches for tests of the planner."""

from __future__ import annotations

from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.planner import (
    BatchShape,
    Candidate,
    PlanOptions,
)

RULES = PlanOptions(policy="rules")


def node(name: str, seconds: float, *, machine: str = "", ahead: float = 0.0) -> Candidate:
    """A node known to take `seconds` for an item of one token."""
    return Candidate(name, Cost(0.0, seconds, observations=9), machine or name, ahead)


def unknown(name: str, *, gpu: bool = False, machine: str = "") -> Candidate:
    return Candidate(name, Cost.unknown(gpu=gpu), machine or name)


def nodes(*seconds: float) -> list[Candidate]:
    return [node(name, each) for name, each in zip("abcdefgh", seconds, strict=False)]


def items(count: int) -> BatchShape:
    return BatchShape(count, float(count))
