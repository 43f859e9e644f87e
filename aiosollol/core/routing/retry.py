"""Classify failures, and decide whether to retry a failed request."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeUnavailable,
    NodeUnreachable,
    RunnerFailed,
    ServerBusy,
    StreamCutOff,
)

if TYPE_CHECKING:
    from random import Random


class Failure(Enum):
    """Why an attempt on a node failed, as far as the next step depends on it."""

    INPUT = "input"
    """The request is invalid and would fail on every node."""
    MODEL = "model"
    """The node lacks the model: try another node. Does not count against the node."""
    BUSY = "busy"
    """The node's queue is full: try it later, or another node."""
    NODE = "node"
    """The node is unreachable: try another node."""
    ANSWER = "answer"
    """A wrong, missing or incomplete answer: the fault of the node or of this input."""


def classify(error: NodeError) -> Failure:
    """The kind of `error`; `Failure.ANSWER` by default."""
    if isinstance(error, BadRequest):
        return Failure.INPUT
    if isinstance(error, ModelMissing):
        return Failure.MODEL
    if isinstance(error, ServerBusy | NodeUnavailable):
        return Failure.BUSY
    if isinstance(error, NodeUnreachable):
        return Failure.NODE
    return Failure.ANSWER


MAX_RETRIES = 3
BACKOFF_SECONDS = 0.5
RETRY_SHARE = 0.2
RETRY_FLOOR = 10
_WINDOW = 10.0

Action = Literal["other", "later", "give_up"]


class RetryDecision(NamedTuple):
    """What to do about a failure.

    action: "other", try another node at once; "later", try again after `after` seconds on the node
    that is best then; "give_up".
    after: seconds to wait.
    reason: why, for people to read.
    """

    action: Action
    after: float
    reason: str


class RetryBudget:
    """Limits retries to `share` of the recent requests plus `floor`.

    Recent means a sliding window of 10 s: the counts of the last full window fade out evenly during
    the current one. The figures are those of Finagle's RetryBudget, except for the floor: 10 per
    window instead of 10 per second, which would be no limit for a small cluster.
    """

    __slots__ = ("_before", "_ends", "_present", "floor", "share")

    def __init__(self, share: float = RETRY_SHARE, floor: float = RETRY_FLOOR) -> None:
        self.share = share
        self.floor = floor
        self._present = [0, 0]  # requests, retries
        self._before = [0, 0]
        self._ends = -math.inf

    def request(self, now: float) -> None:
        """Count a request: its first attempt."""
        if now >= self._ends:
            self._slide(now)
        self._present[0] += 1

    def left(self, now: float) -> float:
        """The retries left, with fraction; below 1 means none."""
        if now >= self._ends:
            self._slide(now)
        part = max(0.0, self._ends - now) / _WINDOW
        requests = self._present[0] + part * self._before[0]
        retries = self._present[1] + part * self._before[1]
        return self.floor + self.share * requests - retries

    def take(self, now: float) -> bool:
        """Take a retry from the budget; False if none is left."""
        if self.left(now) < 1.0:
            return False
        self._present[1] += 1
        return True

    def _slide(self, now: float) -> None:
        is_next = now < self._ends + _WINDOW
        self._before = self._present if is_next else [0, 0]
        self._present = [0, 0]
        self._ends = self._ends + _WINDOW if is_next else now + _WINDOW


def backoff(retry: int, rng: Random, left: float = math.inf) -> float:
    """Seconds to wait before the `retry`-th retry of a request, counted from 0.

    Uniform between 0 and 0.5 x 2^retry: "full jitter", which spreads simultaneous failures better
    than jitter around a fixed pause
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). At most half of
    `left`, the seconds until the caller's deadline: the attempt needs the rest.
    """
    seconds = rng.uniform(0.0, BACKOFF_SECONDS * 2.0 ** min(retry, 16))
    return max(0.0, min(seconds, left / 2))


def decide(
    error: NodeError,
    *,
    failures: int,
    others: bool,
    now: float,
    deadline: float,
    budget: RetryBudget,
    rng: Random,
    delivered: int = 0,
    max_retries: int = MAX_RETRIES,
) -> RetryDecision:
    """What to do after `error`. Takes a retry from `budget` if it allows one.

    failures: failed attempts of this request, including this one.
    others: whether there is an eligible node that has not been tried for this request.
    deadline: the caller's deadline; infinity if none.
    delivered: parts of a stream already delivered to the caller.
    """
    if delivered or (isinstance(error, StreamCutOff) and error.delivered):
        parts = delivered or getattr(error, "delivered", 0)
        return _give_up(f"{parts} parts of the answer were already delivered")
    failure = classify(error)
    if failure is Failure.INPUT:
        return _give_up("the request is invalid and would fail on every node")
    if not others and not _may_pass(error, failure):
        return _give_up(_WHY_NOT_AGAIN.get(failure, "no other node is left"))
    if failures > max_retries:
        return _give_up(f"it was tried {failures} times")
    left = deadline - now
    if left <= 0.0:
        return _give_up("the deadline has passed")
    if not budget.take(now):
        return _give_up(f"retries are already {budget.share:.0%} of the recent requests")
    if others:
        return RetryDecision("other", 0.0, _WHY_OTHER[failure])
    return RetryDecision("later", backoff(failures - 1, rng, left), _WHY_LATER[failure])


def _give_up(reason: str) -> RetryDecision:
    return RetryDecision("give_up", 0.0, reason)


def _may_pass(error: NodeError, failure: Failure) -> bool:
    """Whether a retry on the same node may succeed.

    A queue drains, a server restarts in seconds, a dead runner in 0.4 s. But a timeout would only
    repeat, and a server that is not Ollama, or denies access, will answer the same again.
    """
    if failure in (Failure.BUSY, Failure.NODE):
        return True
    return isinstance(error, ConnectionLost | RunnerFailed | StreamCutOff)


_WHY_OTHER = {
    Failure.MODEL: "the node lacks the model; another has it",
    Failure.BUSY: "the node's queue is full; another's may not be",
    Failure.NODE: "the node is unreachable; another is not",
    Failure.ANSWER: "the node failed; another may not",
}
_WHY_LATER = {
    Failure.BUSY: "every node's queue is full; they drain",
    Failure.NODE: "no node is reachable; one may be restarting",
    Failure.ANSWER: "every node failed; a runner restarts within a second",
}
_WHY_NOT_AGAIN = {Failure.MODEL: "no other node has the model"}
