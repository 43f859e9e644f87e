"""Decide by evidence whether an item or a node is at fault for a failure.

A node's answer is a claim, and nodes can be wrong: a proxy turns a restart into a 502, a broken
server refuses everything. So a failure counts against an item only together with what the same
node answers before and afterwards, and with what other nodes say about the same item.

==========================================================  =======================================
What is known of an item that was alone in its request       Verdict
==========================================================  =======================================
a node has not been asked                                    ask it
two nodes refused it, and answered other work afterwards     the item is at fault
every node refused it, and one answered other work after     the item is at fault
the same, but a node is down that may come back              wait for that node, at most 10 s
every node refused it, and no node has answered since        undecided: check a node with
                                                             a text that cannot be at fault
a node failed in a way that may pass, and answers again      ask it again, up to four times
a node answered wrongly, and answers other work              ask it again, once
another node answers it                                      the nodes that refused it are at fault
==========================================================  =======================================
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from aiosollol.errors import (
    BadRequest,
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
    SollolError,
    StreamCutOff,
)

CONFIRMATIONS = 2
"""Sound nodes that must refuse an item before it is at fault, where there are that many."""

UNPROVEN_CONFIRMATIONS = 4
"""Nodes that must refuse a live request in known words if none of them is known to be sound."""

REPEATS = 4
"""How often a failure that may pass must come back on a node, which answers other work meanwhile,
until the item is taken for its cause."""
WRONG_REPEATS = 2
"""The same for wrong answers, such as too few vectors."""

OUTAGE_PATIENCE = 60.0
"""Seconds to wait while every node fails in a way that passes by itself."""
RETURN_PATIENCE = 10.0
"""Seconds that an item which one node refused waits for another node that is down. A server starts
again within that."""
UNKNOWN_PATIENCE = 3.0
"""Seconds to wait while every node fails in another way that may pass, or none ever answered."""

_TRANSIENT_STATUSES = frozenset((408, 425, 429, 502, 503, 504))
_PASSING_STATUSES = _TRANSIENT_STATUSES | {500, 507}


def may_pass(error: SollolError) -> bool:
    """Whether the same request may succeed on the same node later.

    Restarts, full queues, dead runners and proxies without a server pass by themselves.
    """
    if isinstance(error, BadRequest | ModelMissing):
        return False
    if isinstance(error, ResponseError) and error.status in _PASSING_STATUSES:
        return True
    kinds = (ServerBusy, RunnerFailed, NodeUnreachable, NodeTimeout, ConnectionLost, StreamCutOff)
    return isinstance(error, kinds) or _is_foreign(error)


def patience(*, has_answered: bool, outage: float) -> float:
    """Seconds to wait for a node to recover while every node fails.

    has_answered: whether any node has ever answered.
    outage: the longest wait.
    """
    return outage if has_answered else min(UNKNOWN_PATIENCE, outage)


def live_patience(error: SollolError, *, has_answered: bool, outage: float) -> float:
    """As `patience`, for a live request that every node failed, lastly with `error`.

    A batch checks its nodes with a text that cannot be at fault; a live request may be the cause
    itself, unless its error is known to pass.
    """
    if not may_pass(error) or isinstance(error, NodeTimeout):
        return 0.0  # the same again
    return patience(has_answered=has_answered and _is_transient(error), outage=outage)


def _is_transient(error: SollolError) -> bool:
    """Whether the failure is known to pass by itself."""
    if isinstance(error, ResponseError):
        return error.fault in ("busy", "passing") or error.status in _TRANSIENT_STATUSES
    return isinstance(error, ConnectionLost | StreamCutOff) or _is_foreign(error)


def _is_foreign(error: SollolError) -> bool:
    """Whether something else than Ollama answered, such as a proxy."""
    return isinstance(error, ProtocolError) and error.is_foreign


def _holds_everywhere(error: SollolError) -> bool:
    """Whether the words of a refusal are about the request alone, not about the model or server."""
    if not isinstance(error, BadRequest) or error.fault != "request":
        return False
    return "support" not in error.message  # what is supported differs between versions


class Refusal(NamedTuple):
    """A node failed an item that was alone in its request.

    error: the failure.
    at: when: the number of the event, or a time.
    times: how often, counting only failures with a success of the node between them.
    """

    error: SollolError
    at: float
    times: int = 1

    def again(self, error: SollolError, now: float, last_success: float) -> Refusal:
        """The refusal after another failure of the same item. last_success: of the node."""
        return Refusal(error, now, self.times + (last_success > self.at))

    def is_confirmed(self, last_success: float) -> bool:
        """Whether the node shows that it answers other work, so that the item is the cause.

        A failure in other words than a refusal must have come back after that.
        """
        if isinstance(self.error, BadRequest):
            return last_success > self.at
        return self.times >= self._repeats

    def may_ask_again(self, last_success: float) -> bool:
        """Whether the node may answer the item now: it has answered since a failure."""
        if isinstance(self.error, BadRequest):
            return False
        return self.times < self._repeats and last_success > self.at

    @property
    def _repeats(self) -> int:
        return REPEATS if may_pass(self.error) else WRONG_REPEATS


class RequestEvidence:
    """Which nodes failed one live request, and what that proves."""

    __slots__ = ("_refusals", "_sound", "failures")

    def __init__(self) -> None:
        self._refusals: dict[str, Refusal] = {}
        self._sound: set[str] = set()
        self.failures = 0
        """Failed attempts on sound nodes since the last pause."""

    def failed(self, error: NodeError, answers: int, *, is_sound: bool) -> None:
        """Record a failed attempt.

        answers: of the node to other requests for the model, since any of them failed.
        is_sound: whether the node is known to answer requests of this kind, and does so now.
        """
        known = self._refusals.get(error.node)
        self._refusals[error.node] = (
            Refusal(error, answers) if known is None else known.again(error, answers, answers)
        )
        if is_sound:
            self._sound.add(error.node)
            self.failures += 1

    @property
    def refusers(self) -> list[str]:
        """The nodes that refused the request as invalid."""
        return [name for name, each in self._refusals.items() if isinstance(each.error, BadRequest)]

    def doubt(self, node: str) -> None:
        """`node` turned out to fail other requests too."""
        self._sound.discard(node)

    @property
    def is_agreed(self) -> bool:
        """Whether enough nodes refused the request as invalid.

        That takes two sound nodes; or one if its words are known to hold on every node; or one and
        any other if they are known at all. Nodes that are not sound may refuse everything, so it
        takes more of them.
        """
        refusers = self.refusers
        sound = self._sound.intersection(refusers)
        if len(sound) >= CONFIRMATIONS or any(
            _holds_everywhere(self._refusals[name].error) for name in sound
        ):
            return True
        errors = [self._refusals[name].error for name in refusers]
        if not all(isinstance(each, BadRequest) and each.is_known for each in errors):
            return False
        return len(refusers) >= (CONFIRMATIONS if sound else UNPROVEN_CONFIRMATIONS)

    def is_guilty(self, able: Collection[str], answers: Mapping[str, int]) -> bool:
        """Whether the nodes answer other requests and fail this one.

        able: the nodes that could take it.
        answers: of each node to other requests for the model, since any of them failed.
        """
        return judge(self._refusals, able, answers).fault == "item"


class Verdict(NamedTuple):
    """What to do with an item.

    fault: "item", give it up; "open", send it to one of `ask`; "awaiting", a node that is down may
    answer it; "unproven", no node may be asked and none has shown that it answers other work.
    ask: the nodes to ask.
    """

    fault: Literal["item", "open", "awaiting", "unproven"]
    ask: Collection[str] = ()


def judge(
    refusals: Mapping[str, Refusal],
    able: Collection[str],
    last_success: Mapping[str, float],
    absent: Collection[str] = (),
) -> Verdict:
    """The verdict on an item.

    refusals: by node.
    able: the nodes that could take the item.
    last_success: when each node last answered other work; missing if never.
    absent: the nodes that are down and may come back.
    """
    never = float("-inf")
    confirmed = sum(
        refusal.is_confirmed(last_success.get(name, never)) for name, refusal in refusals.items()
    )
    if confirmed >= CONFIRMATIONS:
        return Verdict("item")
    ask = [
        name
        for name in able
        if name not in refusals or refusals[name].may_ask_again(last_success.get(name, never))
    ]
    if ask:
        return Verdict("open", ask)
    if any(name not in refusals for name in absent):
        return Verdict("awaiting")
    return Verdict("item" if confirmed else "unproven")
