"""One node in use: its state, its requests, and the figures learned from its answers."""

from __future__ import annotations

import math
from collections.abc import Collection

from aiosollol.cluster.node_costs import NodeCosts, SharedBeliefs
from aiosollol.cluster.slots import Room
from aiosollol.cluster.workload import Workload
from aiosollol.core import node as memory
from aiosollol.core.model_names import full_name
from aiosollol.core.networks import Source
from aiosollol.core.node import NodeSpec
from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing import concurrency_limit
from aiosollol.core.routing.circuit_breaker import Breaker
from aiosollol.core.routing.concurrency_limit import Begin, LatencySample
from aiosollol.core.routing.node_health import Backlog, NodeHealth
from aiosollol.core.routing.running_chats import RunningChat
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.stats import NodeCounters, NodeStats


class Node(NodeCosts):
    """One node in use. Only it and its `ClusterState` set its attributes; others call its methods.

    speaks_base64: whether it returns vectors in base64; None until it was asked to.
    source: how it was found; None if it was configured.
    backlog, standing, breaker: see `core.routing.node_health` and `core.routing.circuit_breaker`.
    returned_at: when it came back from being down, by the cluster state's clock.
    outrun: requests in flight that another node answered first, although this one had more time for
    them; by `id`, because equal requests are not the same.
    refusals: requests that it refused as invalid since its last answer.
    distrusted: models whose vectors differ from those of other nodes.
    """

    __slots__ = (
        "backlog",
        "breaker",
        "counters",
        "distrusted",
        "is_draining",
        "outrun",
        "refusals",
        "returned_at",
        "source",
        "speaks_base64",
        "standing",
    )

    def __init__(
        self,
        spec: NodeSpec,
        room: Room | None = None,
        source: Source | None = None,
        shared: SharedBeliefs | None = None,
    ) -> None:
        super().__init__(spec, room, shared)
        self.counters = NodeCounters()
        self.speaks_base64: bool | None = None
        self.source = source
        self.returned_at = -math.inf
        self.is_draining = False
        self.outrun: set[int] = set()
        self.refusals = 0
        self.backlog = Backlog()
        self.standing = NodeHealth()
        self.breaker: Breaker = breakers.CLOSED
        self.distrusted: set[str] = set()

    def __repr__(self) -> str:
        condition = "down" if self.state.is_down else "up" if self.is_known else "unknown"
        return f"<Node {self.name} {condition}, {self.in_flight} in flight>"

    # State.

    @property
    def spec(self) -> NodeSpec:
        return self.state.spec

    @property
    def priority(self) -> int:
        return self.state.spec.priority

    @property
    def is_known(self) -> bool:
        """Whether the node has answered, or failed to, at least once."""
        return self.state.models is not None or self.state.is_down

    @property
    def is_down(self) -> bool:
        return self.state.is_down

    @property
    def error(self) -> str:
        return self.state.error

    @property
    def cpu_load(self) -> float | None:
        return self.state.cpu_load

    @property
    def gpu_free_mem(self) -> float | None:
        """Free GPU memory in MB, as in the original; None if unknown."""
        free = memory.gpu_free(self.state)
        return None if free is None else free / 1e6

    @property
    def latency(self) -> float:
        """Smoothed seconds per answer; 0 before the first answer."""
        return self.counters.latency

    def has_model(self, model: str) -> bool:
        return self.state.has_model(model)

    def digest(self, model: str) -> str:
        """The digest of `model`, as reported by the node; "" if unknown."""
        known = self.state.find_model(model)
        return "" if known is None else known.digest

    def is_distrusted(self, model: str) -> bool:
        """Whether its vectors of `model` differ from those of other nodes."""
        return full_name(model) in self.distrusted

    # Predicted costs.

    def ahead(self, now: float) -> float:
        """Seconds until it has finished this program's requests in flight, or could begin more."""
        ahead = self.backlog.ahead(now)
        for work in self._workloads:
            if work.chats:
                ahead += work.chats.ahead(now)
        return ahead

    def wait(self, request: RouteRequest, now: float) -> float:
        """Seconds until it would begin `request`, behind those in flight and waiting."""
        wait = self.backlog.ahead(now)
        if self.queued or self.has_chats:
            for work in self._workloads:
                if work.chats is None:
                    wait += work.queued_seconds
                elif work.in_flight or work.queued:
                    wait += work.chats.ahead(now, work.queued_seconds)
        return wait

    def fits(self, model: str) -> bool | None:
        """Whether `model` is in GPU memory or fits there; None if unknown."""
        return memory.fits(self.state, model)

    # Learning from answers.

    def teach(self, model: str, tokens: float, sent_at: float, now: float) -> None:
        """Record an embedding of `tokens` as if sent at `sent_at` and answered now."""
        self.standing.asked(sent_at)
        self.learn(RouteRequest(model, tokens), tokens, sent_at, now)

    def adopt_answers(self, other: Node) -> None:
        """Adopt the costs and counters of another `Node` of the same server."""
        self.costs = other.costs
        self.counters = other.counters

    def learn_limit(self, work: Workload, sample: LatencySample) -> None:
        """Adapt the concurrency limit to a finished live request."""
        work.adapt(concurrency_limit.adapt(work.concurrency, sample))

    def learn_begin(self, work: Workload, begin: Begin) -> None:
        """Adapt the concurrency limit to a chat that has begun."""
        work.adapt(concurrency_limit.after_begin(work.concurrency, begin))
        if work.chats is not None:
            has_waited = concurrency_limit.has_waited(begin.waited, begin.seconds)
            # The limit goes down in steps where it is not known how many were active.
            active = max(begin.active, work.allowed - 1) if has_waited else begin.active
            work.chats.saw(max(1, active), are_all=has_waited)
        if self.queued:
            self.call_waiting()

    def learn_base64(self, is_base64: bool) -> None:
        """Record whether it returned vectors in base64 when asked to."""
        self.speaks_base64 = is_base64

    def forget_changed(self, models: Collection[str]) -> None:
        """Drop what is known of the vectors and the load of `models`, by full name."""
        for name in models:
            self.distrusted.discard(name)
            self.embeds.pop(name, None)
            self._options.pop(name, None)
            self._warmed.discard(name)

    # Accounting.

    def begin(self, seconds: float, now: float) -> None:
        """Record the send of a request that should take `seconds`. Pair with `end`."""
        self.backlog.enter(seconds, now)
        self.standing.asked(now)

    def begin_chat(
        self, request: RouteRequest, load: float, now: float
    ) -> tuple[RunningChat, float]:
        """Record the send of a chat, and return it and its predicted seconds. Pair with `end`.

        load: seconds until the model is loaded.
        """
        work = self.workload(request)
        assert work.chats is not None
        self.standing.asked(now)
        lengths = work.lengths.of(request.max_output)
        parts = work.chat_seconds(request, is_home=request.home == self.name)
        if parts is None:
            prefill, per_token = self.seconds(request) or 0.0, 0.0
            seconds = prefill
        else:
            prefill, decode = parts
            per_token = decode / max(1.0, lengths.expected(request.max_output))
            seconds = prefill + decode
        begins_at = now + load + work.chats.ahead(now) + prefill
        chat = RunningChat(now, begins_at, per_token, request.max_output, lengths)
        work.chats.enter(chat)
        return chat, seconds

    def end(
        self, work: Workload | None, seconds: float, now: float, chat: RunningChat | None = None
    ) -> None:
        """Record the end of a request, with any outcome.

        work: None for a chunk. seconds: as passed to `begin`. chat: as returned by `begin_chat`.
        """
        if chat is None or work is None or work.chats is None:
            self.backlog.leave(seconds, now)
        else:
            work.chats.leave(chat, now)
        if work is None:
            self.leave_chunk()
        else:
            self.leave(work)

    def succeed(self, sent_at: float, now: float, *, vectors: int = 0, tokens: int = 0) -> None:
        """Count an answered request. tokens: as counted by the server."""
        counters = self.counters
        counters.success(now - sent_at)
        counters.vectors += vectors
        counters.tokens += tokens
        self.last_done = now
        self.refusals = 0

    def fail(self, now: float, *, is_rejected: bool) -> None:
        """Count a failed request. is_rejected: it was refused as invalid."""
        if is_rejected:
            self.counters.rejected += 1
            self.refusals += 1
        else:
            self.counters.failed += 1
        self._disturb(now)

    def cancel(self, now: float) -> None:
        """Count a request that was cancelled by the client."""
        self.counters.cancelled += 1
        self._disturb(now)

    def _disturb(self, now: float) -> None:
        # A request sent while another had no answer is no evidence of the cost.
        self.disturbed_at = now

    def count_vectors(self, count: int) -> None:
        """Count the vectors of an answer that was passed on unparsed."""
        self.counters.vectors += count

    def begin_load(self, model: str, now: float) -> float:
        """Record the start of a load of `model`. Returns its predicted seconds for `end_load`."""
        seconds = self.load_seconds(model)
        self.loading.add(full_name(model))
        # Separate work: it goes on if all requests that wait for it are cancelled.
        self.backlog.enter(seconds, now)
        return seconds

    def end_load(self, model: str, seconds: float, now: float) -> None:
        """Record the end of a load, with any outcome. `seconds`: as returned by `begin_load`."""
        self.loading.discard(full_name(model))
        self.backlog.leave(seconds, now)

    def mark_outrun(self, request: RouteRequest) -> None:
        """Record that another node answered `request` first, although this one had more time."""
        self.outrun.add(id(request))

    def take_outrun(self, request: RouteRequest) -> bool:
        """Whether `request` was marked as outrun here. Clears the mark."""
        if id(request) not in self.outrun:
            return False
        self.outrun.remove(id(request))
        return True

    # Decisions of the operator or the client.

    def drain(self) -> bool:
        """Take no more work. Returns whether that changes anything."""
        if self.is_draining:
            return False
        self.is_draining = True
        self.send_away()
        return True

    def resume(self, now: float) -> bool:
        """Take work again. Returns whether that changes anything."""
        if not self.is_draining:
            return False
        self.is_draining = False
        self.returned_at = now
        return True

    def trust(self, model: str, *, is_right: bool) -> bool:
        """Set whether its vectors of `model` match other nodes'. Returns whether that changed."""
        name = full_name(model)
        if is_right is (name not in self.distrusted):
            return False
        if is_right:
            self.distrusted.discard(name)
        else:
            self.distrusted.add(name)
        return True

    def mirror(self, *, is_draining: bool, distrusted: Collection[str]) -> None:
        """Copy the client's state of the node into a worker."""
        self.is_draining = is_draining
        self.distrusted = set(distrusted)

    def stats(self, now: float) -> NodeStats:
        state, spec = self.state, self.state.spec
        return NodeStats(
            key=spec.key,
            name=spec.name,
            host=spec.url,
            priority=spec.priority,
            is_available=not state.is_down and not self.is_draining,
            active=self.in_flight,
            counters=self.counters,
            error=state.error,
            queued=self.queued,
            limit=self.limit,
            breaker=self.breaker.phase(now),
            cpu_load=state.cpu_load,
            gpu_free_mem=self.gpu_free_mem,
            is_draining=self.is_draining,
            distrusted=tuple(sorted(self.distrusted)),
        )


def has_same_vectors(node: Node, model: str, digest: str | None) -> bool:
    """Whether the vectors of `model` on `node` are comparable with those of other nodes."""
    if node.is_distrusted(model):
        return False
    return digest is None or node.digest(model) == digest
