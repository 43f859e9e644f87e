"""What a pool tells whoever watches it: one value per thing that happened."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Routed(NamedTuple):
    """A live request is sent to `node`. attempt: 1 for the first. reason: why there is another, ""
    for the first."""

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
    """A node is "up", "down", "added", "removed", "draining" or "resumed", or its circuit breaker
    is "breaker open", "breaker half-open" (it is being probed) or "breaker closed"."""

    at: float
    node: str
    change: str
    detail: str = ""


class Loading(NamedTuple):
    """A node begins to load a model, or is done: `seconds` is None, or how long it took.

    error: why it could not, "" if it could.
    """

    at: float
    model: str
    node: str
    seconds: float | None = None
    error: str = ""


PoolEvent: TypeAlias = Routed | Hedged | AttemptFailed | NodeChanged | Loading
"""`at` is in seconds by the event loop's clock."""
