"""The events of a pool, for observers."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Routed(NamedTuple):
    """A live request goes to `node`.

    attempt: 1 for the first.
    reason: why it is tried again; "" for the first.
    """

    at: float
    model: str
    node: str
    attempt: int
    reason: str


class Hedged(NamedTuple):
    """A late live embedding was also sent to a second node."""

    at: float
    model: str
    first: str
    second: str


class AttemptFailed(NamedTuple):
    """A request to `node` failed. kind: the kind of failure, a value of `Failure`."""

    at: float
    model: str
    node: str
    kind: str
    error: str


class NodeChanged(NamedTuple):
    """A node or its circuit breaker changed state.

    change: "up", "down", "added", "removed", "draining", "resumed", "breaker open",
    "breaker half-open" (it is being probed), "breaker closed", "vectors differ" (those of one model
    differ from those of other nodes, so it is left out) or "vectors trusted" (that is over).
    """

    at: float
    node: str
    change: str
    detail: str = ""


class Loading(NamedTuple):
    """A model load began or ended.

    seconds: duration of the load; None when it begins.
    error: why it failed; "" otherwise.
    """

    at: float
    model: str
    node: str
    seconds: float | None = None
    error: str = ""


PoolEvent: TypeAlias = Routed | Hedged | AttemptFailed | NodeChanged | Loading
"""`at` is the event loop's time, in seconds."""
