"""One request to one node, from its slot to its outcome, which is recorded here."""

from __future__ import annotations

from types import TracebackType

from aiosollol.cluster.node import Node
from aiosollol.cluster.node_costs import WorkKind
from aiosollol.cluster.state import ClusterState
from aiosollol.core.events import AttemptFailed
from aiosollol.core.model_names import full_name
from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing.concurrency_limit import LatencySample
from aiosollol.core.routing.load_times import LEAST_LOAD
from aiosollol.core.routing.retry import Failure, classify
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.timings import ServerTimings
from aiosollol.errors import BadRequest, ModelMissing, NodeError, NodeTimeout, ServerBusy
from aiosollol.ports import CANCELLED, Span

_OVERHEAD_TOKENS = 75.0
WELL = 2.0
"""Times the predicted seconds, within which an answer to a check clears the node's record of
failures at once, rather than letting it fade."""


class Attempt:
    """A request that has a slot on `node`. Its outcome is recorded exactly once.

    As a context manager it records what is raised inside; otherwise call `answered`.

    options, is_cold: see `Node.is_cold`.
    is_live: whether its latency adapts the node's concurrency limit. Chunks of a batch do not:
    their sizes differ too much.
    span: of its trace; it ends with the attempt.
    """

    __slots__ = (
        "_ahead",
        "_began_at",
        "_cluster",
        "_has_begun",
        "_in_flight",
        "_is_live",
        "_is_look",
        "_is_probe",
        "_options",
        "_request",
        "_seconds",
        "_span",
        "is_cold",
        "node",
        "sent_at",
    )

    def __init__(
        self,
        cluster: ClusterState,
        node: Node,
        request: RouteRequest,
        *,
        options: object = None,
        is_cold: bool,
        is_live: bool,
        span: Span | None = None,
    ) -> None:
        self._cluster = cluster
        self._request = request
        self._options = options
        self._is_live = is_live
        self._span = span
        self._has_begun = False
        self.node = node
        self.sent_at = self._began_at = now = cluster.clock()
        self.is_cold = is_cold
        load = node.load_seconds(request.model) if is_cold else 0.0
        self._seconds = (node.seconds(request) or 0.0) + load
        self._ahead = node.backlog.ahead(now)
        self._in_flight = node.in_flight
        self._is_look = node.standing.is_due(now)
        node.begin(self._seconds, now)
        # A live request before the open breaker admits one is the last resort, and a probe too.
        breaker = node.breaker
        self._is_probe = breaker.opens_at is not None and (
            breaker.admits(now) or (is_live and not breaker.is_probing)
        )
        if self._is_probe:
            cluster.advance_breaker(node, breakers.CallSent(), now)

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None) -> None:
        """Record a failure of the node, or a cancellation. Without an error it does nothing."""
        if isinstance(error, NodeError):
            self.failed(error)
        elif error is not None:  # the caller left, or another node was faster
            self.cancelled()

    def restart(self) -> None:
        """Start the clock again once the model is loaded, to time the request alone."""
        self.is_cold = False
        self.sent_at = self._cluster.clock()

    def began(self) -> None:
        """Record the first part of a stream: the node works, however long the rest takes."""
        self._has_begun = True
        if self._is_probe:
            answered = breakers.CallAnswered(is_probe=True)
            self._cluster.advance_breaker(self.node, answered, self._cluster.clock())
            self._is_probe = False

    @property
    def predicted(self) -> float:
        """Seconds until its answer, as predicted when it was sent; 0 if unknown."""
        return self._ahead + self._seconds if self._seconds else 0.0

    def answered(
        self,
        work: float,
        *,
        tokens: int = 0,
        vectors: int = 0,
        timings: ServerTimings | None = None,
    ) -> None:
        """Record the answer.

        work: tokens to learn the cost from.
        tokens: as counted by the server.
        vectors: how many it returned.
        timings: None if the server reports none.
        """
        node, request, now = self.node, self._request, self._cluster.clock()
        load = 0.0  # of a model that had left the memory unnoticed
        if timings is not None and timings.load >= LEAST_LOAD:
            load = timings.load
            node.learn_load(request.model, load)
        seconds = max(0.0, now - self.sent_at - load)
        if request.kind == "embed":
            node.learn(request.model, work, self.sent_at, now, load)
        else:
            node.learn_talk(WorkKind(full_name(request.model), request.kind), work, seconds)
        if self._is_live and not load:
            self._adapt(seconds, work)
        node.succeed(self.sent_at, now, vectors=vectors, tokens=tokens)
        node.warmed(request.model, self._options)
        predicted = self.predicted
        self._cluster.answered(
            node,
            seconds,
            predicted,
            now,
            is_well=self._is_look and seconds <= WELL * predicted,
            is_probe=self._is_probe,
        )
        self._leave(now)

    def failed(self, error: NodeError) -> None:
        """Record a failure."""
        cluster, node, model = self._cluster, self.node, self._request.model
        now = cluster.clock()
        failure = classify(error)
        node.fail(now, is_rejected=isinstance(error, BadRequest | ModelMissing))
        cluster.tell(AttemptFailed(now, model, node.name, failure.value, str(error)))
        if isinstance(error, NodeTimeout) and now - self._began_at < self.predicted:
            # The caller's timeout was shorter than the predicted time. The node is not at fault,
            # and a few such callers must not eject it for all others.
            cluster.advance_breaker(node, breakers.CallAbandoned(self._is_probe), now)
            self._leave(now, type(error).__name__)
            return
        if failure in (Failure.NODE, Failure.ANSWER, Failure.BUSY):
            cluster.blame(node, now)
        if self._is_live and not self.is_cold and isinstance(error, NodeTimeout | ServerBusy):
            self._adapt(now - self.sent_at, 0.0, is_overload=True)
        cluster.failed(node, error, model)
        failed = breakers.CallFailed(failure, self._is_probe, is_lost=self._has_begun)
        cluster.advance_breaker(node, failed, now)
        self._leave(now, type(error).__name__)

    def cancelled(self) -> None:
        """Record a cancellation by us: the caller left, or another node was faster."""
        cluster, node = self._cluster, self.node
        now = cluster.clock()
        node.cancel(now)
        event: breakers.Event = breakers.CallAbandoned(self._is_probe)
        if node.take_outrun(self._request):
            # A node that hangs never fails; being outrun is the only sign of it.
            cluster.outrun(node, now - self.sent_at, self.predicted, now)
            event = breakers.CallFailed(Failure.ANSWER, self._is_probe)
        cluster.advance_breaker(node, event, now)
        self._leave(now, CANCELLED)

    def _leave(self, now: float, problem: str = "") -> None:
        node = self.node
        if node.outrun:
            node.take_outrun(self._request)  # the mark ends with the attempt
        node.end(self._seconds, now, is_live=self._is_live)
        if self._span is not None:
            self._span.end(problem)

    def _adapt(self, seconds: float, work: float, *, is_overload: bool = False) -> None:
        # Add the fixed cost of a request, or short texts would look like congestion.
        sample = LatencySample(seconds, work + _OVERHEAD_TOKENS, self._in_flight, is_overload)
        self.node.learn_limit(WorkKind(full_name(self._request.model), self._request.kind), sample)
