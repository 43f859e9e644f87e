"""The failed attempts of a live request: what comes next, and the error if nothing does."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable

from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.blame import OUTAGE_PATIENCE, UNKNOWN_PATIENCE, RequestEvidence, live_patience
from aiosollol.core.routing.retry import Failure, RetryBudget, classify, decide
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.stats import CallCounters
from aiosollol.errors import (
    NodeError,
    NodeTimeout,
    NoNodeAvailable,
    RequestFailed,
    ResponseError,
)
from aiosollol.live.admission import Admission
from aiosollol.live.outage import Outages

log = logging.getLogger("aiosollol")

_SOUND_SUCCESS = 0.5
"""Rate of recent successes from which the failure of a node says something about the request."""


class FailureHandler:
    """Handles the failures of live requests.

    budget: the retry budget.
    max_retries: of a request on sound nodes.
    outage_patience: seconds that a request waits while every node fails in a passing way.
    """

    def __init__(
        self,
        cluster: ClusterState,
        eligibility: Eligibility,
        admission: Admission,
        budget: RetryBudget,
        rng: random.Random,
        calls: CallCounters,
        *,
        max_retries: int,
        outage_patience: float = OUTAGE_PATIENCE,
    ) -> None:
        self.cluster = cluster
        self.eligibility = eligibility
        self.admission = admission
        self.budget = budget
        self.calls = calls
        self.max_retries = max_retries
        self.outage_patience = outage_patience
        self.outages = Outages(rng)

    def of(self, request: RouteRequest, tried: set[str], timeout: float) -> RequestFailures:
        """The failures of one request. Pair with `close`.

        tried: see `RequestFailures`.
        timeout: of the request, in seconds.
        """
        return RequestFailures(self, request, tried, timeout)


class RequestFailures:
    """The failures of one live request.

    attempts: the errors of all attempts, in order.
    tried: names of the nodes that failed it since the last pause.
    """

    def __init__(
        self, handler: FailureHandler, request: RouteRequest, tried: set[str], timeout: float
    ) -> None:
        self.attempts: list[NodeError] = []
        self.tried = tried
        self._retry_at: dict[str, float] = {}  # as the nodes asked by Retry-After
        self._handler = handler
        self._request = request
        self._timeout = timeout
        self._evidence = RequestEvidence()
        self._began = handler.cluster.clock()
        self._outage = handler.outages.enter(request.model)

    def close(self) -> None:
        """The request is over."""
        self._handler.outages.leave(self._request.model, self._outage)

    async def handle(self, node: Node, errors: Iterable[NodeError], deadline: float) -> None:
        """Return when to try again; raise the error of the request if that would not help.

        node: the node of the first attempt; it may have been hedged.
        errors: of the attempts since the last call, in order.
        """
        handler, request = self._handler, self._request
        is_free = not self._is_sound(node)
        for error in errors:
            self._add(error)
        self.tried.add(node.name)
        for name in self._evidence.refusers:  # meanwhile they may have refused others
            if name not in handler.cluster or not self._is_sound(handler.cluster[name]):
                self._evidence.doubt(name)
        error = self.attempts[-1]
        eligible = [each.name for each in handler.admission.eligible(request)]
        now = handler.cluster.clock()
        has_answered = any(each.counters.succeeded for each in handler.cluster)
        waits_until = self._began + live_patience(
            error, has_answered=has_answered, outage=handler.outage_patience
        )
        decision = decide(
            error,
            failures=self._evidence.failures,
            others=any(name not in self.tried for name in eligible),
            now=now,
            deadline=deadline,
            waits_until=waits_until,
            budget=handler.budget,
            is_agreed=self._evidence.is_agreed,
            is_guilty=self._evidence.is_guilty(eligible, self._outage.answers),
            is_free=is_free,
            max_retries=handler.max_retries,
        )
        log.debug("%s: %s (%s)", request.model, decision.action, decision.reason)
        if decision.action == "later":
            asked = min((self._retry_at.get(name, now) for name in eligible), default=now) - now
            until = min(deadline, waits_until)
            await self._outage.wait(until, handler.eligibility.pause, least=asked)
            self.tried.clear()
            self._evidence.failures = 0
            if handler.cluster.clock() < min(deadline, waits_until):
                self._count_retry(error)
                return
        elif decision.action == "other":
            self._count_retry(error)
            return
        is_late = handler.cluster.clock() >= deadline
        raise self._failure(error, decision.reason, is_late=is_late) from error

    async def wait_for_node(self, error: RequestFailed, deadline: float) -> bool:
        """Wait a moment if `error` says that no node is up. Returns whether to look again."""
        error.attempts = tuple(self.attempts)
        until = min(deadline, self._began + UNKNOWN_PATIENCE)
        handler = self._handler
        if not isinstance(error, NoNodeAvailable) or handler.cluster.clock() >= until:
            return False
        await self._outage.wait(until, handler.eligibility.pause)
        return handler.cluster.clock() < until

    def answered(self, node: Node) -> None:
        """`node` answered the request: the nodes that refused it as invalid were wrong."""
        cluster = self._handler.cluster
        for name in self._evidence.refusers:
            if name != node.name and name in cluster:
                cluster.refused_wrongly(cluster[name], cluster.clock())

    def _add(self, error: NodeError) -> None:
        cluster = self._handler.cluster
        self.attempts.append(error)
        asked = error.retry_after if isinstance(error, ResponseError) else None
        self._retry_at[error.node] = cluster.clock() + (asked or 0.0)
        is_sound = error.node in cluster and self._is_sound(cluster[error.node])
        self._evidence.failed(error, self._outage.answers[error.node], is_sound=is_sound)

    def _is_sound(self, node: Node) -> bool:
        """Whether `node` is known to answer requests of this kind, and mostly does."""
        now = self._handler.cluster.clock()
        return (
            node.breaker.opens_at is None
            and node.refusals <= 1  # a node that refuses everything is not believed
            and node.seconds(self._request) is not None
            and node.standing.success_rate(now) >= _SOUND_SUCCESS
        )

    def _count_retry(self, error: NodeError) -> None:
        if classify(error) is Failure.INPUT:
            self._handler.calls.second_opinions += 1
        else:
            self._handler.calls.retries += 1

    def _failure(self, error: NodeError, reason: str, *, is_late: bool) -> Exception:
        """The error of the request. is_late: its deadline has passed."""
        handler, model = self._handler, self._request.model
        failure = classify(error)
        if failure is Failure.INPUT:
            return error
        if failure is Failure.MODEL and not handler.eligibility.ready(model):
            failed = handler.eligibility.no_node_error(model)
            failed.attempts = tuple(self.attempts)
            return failed
        if all(isinstance(each, NodeTimeout) for each in self.attempts):
            if not is_late:
                return error
            nodes = " and ".join(dict.fromkeys(each.node for each in self.attempts))
            words = f"no answer within {self._timeout:g} s, the timeout of the call"
            if not error.detail.startswith("no answer"):
                words = f"{words} ({error.detail})"
            return NodeTimeout(nodes, words)
        waited = handler.cluster.clock() - self._began
        if waited >= 1.0:
            reason = f"{reason}, after {waited:.0f} s"
        return NoNodeAvailable(
            f"every node that was asked failed: {reason}", details(self.attempts), self.attempts
        )


def details(attempts: Iterable[NodeError]) -> dict[str, str]:
    """What went wrong on each node, each error once, for people to read."""
    by_node: dict[str, Counter[str]] = {}
    for each in attempts:
        by_node.setdefault(each.node, Counter())[each.detail] += 1
    return {
        name: "; ".join(
            detail if times == 1 else f"{detail} ({times} times)" for detail, times in found.items()
        )
        for name, found in by_node.items()
    }
