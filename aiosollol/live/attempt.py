"""One request to one node, from its slot to its outcome, which is recorded here."""

from __future__ import annotations

from types import TracebackType

from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.events import AttemptFailed
from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing.concurrency_limit import Begin, LatencySample, has_waited
from aiosollol.core.routing.load_times import LEAST_LOAD
from aiosollol.core.routing.retry import Failure, classify
from aiosollol.core.routing.running_chats import RunningChat
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.timings import ServerTimings
from aiosollol.errors import BadRequest, ModelMissing, NodeError, NodeTimeout, ServerBusy
from aiosollol.ports import CANCELLED, Span

_OVERHEAD_TOKENS = 75.0
_LATE = 2.0  # times the expected seconds until a first part, which vary with what else is computed
_NOISE_SECONDS = 0.05  # of the time at which a chat got its slot
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
        "_active",
        "_ahead",
        "_began_at",
        "_chat",
        "_cluster",
        "_first_part",
        "_has_begun",
        "_in_flight",
        "_is_beside_chunks",
        "_is_live",
        "_is_look",
        "_is_probe",
        "_options",
        "_request",
        "_seconds",
        "_span",
        "_work",
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
        self._work = node.workload(request)
        self._options = options
        self._is_live = is_live
        self._span = span
        self._has_begun = False
        self.node = node
        self.sent_at = self._began_at = now = cluster.clock()
        self.is_cold = is_cold
        load = node.load_seconds(request.model) if is_cold else 0.0
        self._in_flight = self._work.in_flight
        self._is_beside_chunks = node.has_chunks
        if is_live:
            self._work.traffic.note(now)
        self._is_look = node.standing.is_due(now)
        self._active = 0
        self._first_part = 0.0
        if self._work.chats is None:
            self._chat: RunningChat | None = None
            self._ahead = node.backlog.ahead(now)
            self._seconds = (node.seconds(request) or 0.0) + load
            node.begin(self._seconds, now)
        else:
            self._ahead = node.ahead(now)
            self._chat, seconds = node.begin_chat(request, load, now)
            self._seconds = seconds + load
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
        if self._chat is not None:
            self._chat.loaded(self.sent_at)

    def began(self) -> None:
        """Record the first part of a stream: the node works, however long the rest takes."""
        self._has_begun = True
        if self._chat is not None:
            self._began_answer(self._chat)
        if self._is_probe:
            answered = breakers.CallAnswered(is_probe=True)
            self._cluster.advance_breaker(self.node, answered, self._cluster.clock())
            self._is_probe = False

    def timings_of_parts(self, parts: int) -> ServerTimings | None:
        """The timings of a stream of `parts` by the client's clock, a part for a token."""
        if parts < 2 or not self._has_begun:
            return None
        total = self._cluster.clock() - self.sent_at
        decode = total - self._first_part
        return ServerTimings(total, 0.0, 0, self._first_part, parts, decode)

    @property
    def is_first(self) -> bool:
        """Whether the node has answered no such request before."""
        return self._work.steady is None

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
            node.learn(request, work, self.sent_at, now, load)
        elif self._chat is not None and timings is not None:
            self._learn_chat(self._chat, seconds, timings, now)
        else:
            node.learn_talk(self._work, work, seconds)
        if self._is_live and not load and (self._chat is None or timings is None):
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
        node.end(self._work if self._is_live else None, self._seconds, now, self._chat)
        if self._span is not None:
            self._span.end(problem)

    def _began_answer(self, chat: RunningChat) -> None:
        """Learn from the first part of a stream whether it had to wait for a slot of the node."""
        node, request, now = self.node, self._request, self._cluster.clock()
        assert self._work.chats is not None
        self._first_part = now - self.sent_at
        expected = node.chat_seconds(request)
        waited = seconds = prefill = 0.0
        if expected is not None:
            prefill = _LATE * expected.prefill
            waited = max(0.0, self._first_part - prefill)
            seconds = expected.prefill + expected.decode
        self._learn_begin(chat, waited, seconds, now, prefill, self._work.in_flight)
        chat.began(now)

    def _learn_chat(
        self, chat: RunningChat, seconds: float, timings: ServerTimings, now: float
    ) -> None:
        """Learn the cost of a chat, and from a whole answer whether it had to wait for a slot."""
        assert self._work.chats is not None
        took = timings.prefill + timings.decode
        if self._has_begun:
            wire = self._first_part - timings.waited - timings.prefill
        else:
            wire = seconds - timings.waited - took
            if self._work.chats.remembers(now - took):
                self._learn_begin(chat, timings.waited, took, now - took, 0.0, self._in_flight)
            chat.began(now - took)
        active = (self._active + len(self._work.chats)) / 2.0
        prefill = timings.prefill + max(0.0, wire)
        self.node.learn_chat(self._request, prefill, timings, active)

    def _learn_begin(
        self,
        chat: RunningChat,
        waited: float,
        seconds: float,
        at: float,
        since: float,
        in_flight: int,
    ) -> None:
        """Learn how many slots the node has. at: when `chat` had got one, `since` seconds before.

        The other arguments are those of `Begin`.
        """
        work = self._work
        assert work.chats is not None
        noise = min(_NOISE_SECONDS, (waited + seconds) / 4)
        if has_waited(waited, seconds):
            active = work.chats.active(chat, at - since - noise)
        else:
            active = work.chats.active(chat, at + noise) + 1
        self._active = active
        may_grow = not work.chat_cost.decode.is_serial
        begin = Begin(waited, seconds, active, in_flight, may_grow, is_exact=self._has_begun)
        self.node.learn_begin(work, begin)

    def _adapt(self, seconds: float, work: float, *, is_overload: bool = False) -> None:
        if self._is_beside_chunks and not is_overload:
            return  # it waited for them, however few live requests there were
        # Add the fixed cost of a request, or short texts would look like congestion.
        sample = LatencySample(seconds, work + _OVERHEAD_TOKENS, self._in_flight, is_overload)
        self.node.learn_limit(self._work, sample)
