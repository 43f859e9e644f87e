"""What a pool tells whoever watches it: one value per thing that happened."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Routed(NamedTuple):
    """A live request was sent to `node`. attempt: 1 for the first. reason: why this node."""

    at: float
    model: str
    node: str
    attempt: int
    reason: str


class Hedged(NamedTuple):
    """A live embedding took so long that a second node was asked too."""

    at: float
    model: str
    first: str
    second: str


class AttemptFailed(NamedTuple):
    """A request to `node` failed. kind: what that means, a value of `Failure`."""

    at: float
    model: str
    node: str
    kind: str
    error: str


class NodeChanged(NamedTuple):
    """A node is "up", "down", "added", "removed" or "draining", or its circuit breaker is "open",
    "half-open" or "closed"."""

    at: float
    node: str
    change: str
    detail: str = ""


class Loading(NamedTuple):
    """A node began to load a model, or is done: `seconds` is None, or how long it took."""

    at: float
    model: str
    node: str
    seconds: float | None = None


PoolEvent: TypeAlias = Routed | Hedged | AttemptFailed | NodeChanged | Loading
"""`at` is in seconds by the event loop's clock."""
