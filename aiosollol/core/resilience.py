"""What a failure means for the request, the node and everyone else."""

from __future__ import annotations

from enum import Enum

from aiosollol.errors import (
    BadRequest,
    ModelMissing,
    NodeError,
    NodeUnreachable,
    ServerBusy,
)


class Failure(Enum):
    """Why one attempt on one node failed, as far as it matters for what to do next."""

    INPUT = "input"
    """The request is at fault: no other node would do better."""
    MODEL = "model"
    """This node does not have the model: ask another, and do not hold it against the node."""
    BUSY = "busy"
    """The node cannot take it now: ask it later, or another."""
    NODE = "node"
    """The node cannot be reached: ask another, this one is gone."""
    ANSWER = "answer"
    """It answered wrongly, not at all, or broke off: it may be at fault, or this very input."""


def classify(error: NodeError) -> Failure:
    """The kind of `error`. What is not known to be otherwise is `Failure.ANSWER`."""
    if isinstance(error, BadRequest):
        return Failure.INPUT
    if isinstance(error, ModelMissing):
        return Failure.MODEL
    if isinstance(error, ServerBusy):
        return Failure.BUSY
    if isinstance(error, NodeUnreachable):
        return Failure.NODE
    return Failure.ANSWER
