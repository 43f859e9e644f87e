"""Classify failures, and decide whether to retry a failed request."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

from aiosollol.errors import (
    BadRequest,
    ModelMissing,
    NodeError,
    NodeUnreachable,
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
    if isinstance(error, ServerBusy):
        return Failure.BUSY
    if isinstance(error, NodeUnreachable):
        return Failure.NODE
    return Failure.ANSWER


MAX_RETRIES = 3
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.8
"""Seconds between attempts while every node fails."""
RETRY_SHARE = 0.2
RETRY_FLOOR = 10
_WINDOW = 10.0

Action = Literal["other", "later", "give_up"]


class RetryDecision(NamedTuple):
    """What to do about a failure.

    action: "other", try another node at once; "later", try again after a pause on the node that is
    best then; "give_up".
    reason: why, for people to read.
    """

    action: Action
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


def backoff(
    retry: int, rng: Random | None, *, longest: float = LONGEST_PAUSE, first: float = FIRST_PAUSE
) -> float:
    """Seconds to wait before the `retry`-th retry, counted from 0, while every node fails.

    Doubles from `first` to `longest`, and is uniform between half of that and all of it, so that
    several programs do not retry in step ("equal jitter",
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    rng: None for no jitter.
    """
    seconds = min(longest, first * 2.0 ** min(retry, 16))
    return seconds if rng is None else seconds * rng.uniform(0.5, 1.0)


def decide(
    error: NodeError,
    *,
    failures: int,
    others: bool,
    now: float,
    deadline: float,
    budget: RetryBudget,
    waits_until: float = math.inf,
    is_agreed: bool = False,
    is_guilty: bool = False,
    is_free: bool = False,
    delivered: int = 0,
    max_retries: int = MAX_RETRIES,
) -> RetryDecision:
    """What to do after `error`. Takes a retry from `budget` if it allows one.

    failures: failed attempts of this request since its last pause, including this one, without
    those of nodes that fail other requests too.
    others: whether there is an eligible node that has not been tried since the last pause.
    deadline: the caller's deadline; infinity if none.
    waits_until: when to give up if every node fails.
    is_agreed: enough nodes refused the request as invalid.
    is_guilty: nodes that answer other requests fail this one, again and again.
    is_free: the retry is not taken from the budget: the node fails other requests too, or was being
    probed.
    delivered: parts of a stream already delivered to the caller.
    """
    if delivered or (isinstance(error, StreamCutOff) and error.delivered):
        parts = delivered or getattr(error, "delivered", 0)
        return _give_up(f"{parts} parts of the answer were already delivered")
    failure = classify(error)
    if failure is Failure.INPUT and (is_agreed or not others):
        return _give_up("the request is invalid and would fail on every node")
    if is_guilty:
        return _give_up("nodes that answer other requests fail this one")
    if now >= deadline:
        return _give_up("the deadline has passed")
    if max_retries == 0 and failure is not Failure.INPUT:
        return _give_up("it was tried once, and retries are turned off")
    why_not = _WHY_NOT_AGAIN.get(failure, "no other node is left")
    if others:
        if failures > max(max_retries, 1):
            return _give_up(f"it was tried {failures} times")
        if is_free or budget.take(now):
            return RetryDecision("other", _WHY_OTHER[failure])
        why_not = f"retries are already {budget.share:.0%} of the recent requests"
    if now < waits_until:
        return RetryDecision("later", _WHY_LATER.get(failure, "no node is left"))
    return _give_up(why_not)


def _give_up(reason: str) -> RetryDecision:
    return RetryDecision("give_up", reason)


_WHY_OTHER = {
    Failure.INPUT: "the node refuses the request; another may not",
    Failure.MODEL: "the node lacks the model; another has it",
    Failure.BUSY: "the node's queue is full; another's may not be",
    Failure.NODE: "the node is unreachable; another is not",
    Failure.ANSWER: "the node failed; another may not",
}
_WHY_LATER = {
    Failure.BUSY: "every node's queue is full; they drain",
    Failure.NODE: "no node is reachable; one may be restarting",
    Failure.ANSWER: "every node failed; a restart takes seconds",
}
_WHY_NOT_AGAIN = {Failure.MODEL: "no other node has the model"}
