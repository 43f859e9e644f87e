"""What a failure means, and whether a failed request is worth another attempt."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple

from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeUnreachable,
    RunnerFailed,
    ServerBusy,
    StreamCutOff,
)

if TYPE_CHECKING:
    from random import Random


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


MAX_RETRIES = 3
BACKOFF_SECONDS = 0.5
RETRY_SHARE = 0.2
RETRY_FLOOR = 10
_WINDOW = 10.0

Action = Literal["other", "later", "give_up"]


class RetryDecision(NamedTuple):
    """What to do about a failure. `reason` is in words.

    action: "other", ask another node at once; "later", ask again after `after` seconds, whichever
    node is best then; "give_up".
    """

    action: Action
    after: float
    reason: str


class RetryBudget:
    """Lets retries be a fifth of the recent requests, and a few more where there are few.

    Recent is a window of 10 s that slides: what was counted in the last full window fades out
    evenly during the present one. The figures are those of Finagle's RetryBudget, except that its
    floor is 10 a second and ours 10 in a window: 10 a second to a small cluster would be no limit.
    """

    __slots__ = ("_before", "_ends", "_present", "floor", "share")

    def __init__(self, share: float = RETRY_SHARE, floor: float = RETRY_FLOOR) -> None:
        self.share = share
        self.floor = floor
        self._present = [0, 0]  # requests, retries
        self._before = [0, 0]
        self._ends = -math.inf

    def request(self, now: float) -> None:
        """A caller asked for something: its first attempt."""
        if now >= self._ends:
            self._slide(now)
        self._present[0] += 1

    def left(self, now: float) -> float:
        """How many retries are left; below 1 means none."""
        if now >= self._ends:
            self._slide(now)
        part = max(0.0, self._ends - now) / _WINDOW
        requests = self._present[0] + part * self._before[0]
        retries = self._present[1] + part * self._before[1]
        return self.floor + self.share * requests - retries

    def take(self, now: float) -> bool:
        """Take a retry out of the budget; False if there is none left."""
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
    """Seconds to wait before the `retry`-th retry of a request, which counts from 0.

    Evenly between 0 and 0.5 x 2^retry: "full jitter", which spreads those who failed at the same
    moment better than any jitter around a fixed pause
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Never more than
    half of `left`, the seconds that the caller has: the attempt needs the rest.
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
    """What to do after `error`. Takes from `budget` what it allows.

    failures: attempts of this request that failed, this one included. others: whether a node is fit
    that this request has not been to. deadline: of the caller, infinity if it has none. delivered:
    parts of a stream that the caller has had already.
    """
    if delivered or (isinstance(error, StreamCutOff) and error.delivered):
        parts = delivered or getattr(error, "delivered", 0)
        return _give_up(f"{parts} parts of the answer were delivered already")
    failure = classify(error)
    if failure is Failure.INPUT:
        return _give_up("the request is at fault, and would fail on every node")
    if not others and not _may_pass(error, failure):
        return _give_up(_WHY_NOT_AGAIN.get(failure, "no other node is left, and it would not help"))
    if failures > max_retries:
        return _give_up(f"it was tried {failures} times")
    left = deadline - now
    if left <= 0.0:
        return _give_up("the deadline has passed")
    if not budget.take(now):
        return _give_up(f"retries are {budget.share:.0%} of the recent requests already")
    if others:
        return RetryDecision("other", 0.0, _WHY_OTHER[failure])
    return RetryDecision("later", backoff(failures - 1, rng, left), _WHY_LATER[failure])


def _give_up(reason: str) -> RetryDecision:
    return RetryDecision("give_up", 0.0, reason)


def _may_pass(error: NodeError, failure: Failure) -> bool:
    """Whether the node that failed may do it, if it is asked again in a moment.

    A queue drains, a server restarts in seconds, and a dead runner in 0.4 s. But what took too long
    would take as long again, and what is not Ollama, or forbids, will not change its mind.
    """
    if failure in (Failure.BUSY, Failure.NODE):
        return True
    return isinstance(error, ConnectionLost | RunnerFailed | StreamCutOff)


_WHY_OTHER = {
    Failure.MODEL: "the node does not have the model; another does",
    Failure.BUSY: "the node's queue is full; another's may not be",
    Failure.NODE: "the node cannot be reached; another can",
    Failure.ANSWER: "the node failed; another may not",
}
_WHY_LATER = {
    Failure.BUSY: "every node's queue is full; they drain",
    Failure.NODE: "no node can be reached; one may be restarting",
    Failure.ANSWER: "every node failed; a runner restarts within a second",
}
_WHY_NOT_AGAIN = {Failure.MODEL: "no other node has the model"}
