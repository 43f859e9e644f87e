"""One node in use: what is known of it, what it is doing, and what was learned from its answers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from aiosollol.cluster.slots import NodeSlots, Room
from aiosollol.core import node as memory
from aiosollol.core.networks import Source
from aiosollol.core.node import NodeSpec, NodeState, full_name
from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing import concurrency_limit
from aiosollol.core.routing.circuit_breaker import Breaker
from aiosollol.core.routing.concurrency_limit import Concurrency, LatencySample
from aiosollol.core.routing.node_health import Backlog, NodeHealth, Steady
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.stats import NodeCounters, NodeStats

_GUESSED_LOAD_SECONDS = 5.0


class WorkKind(NamedTuple):
    """What a cost or a limit is learned for: a model by its full name, and a kind of request."""

    model: str
    kind: str


class Node(NodeSlots):
    """One node in use. `state` is what is known of it; everything else is what it is doing.

    Its attributes are changed here and by the `ClusterState` that it belongs to; others call the
    verbs.

    costs: of embedding, by full model name; talk_costs: of other requests.
    speaks_base64: whether it answers vectors in base64, None until it was asked.
    source: how it was found, None if somebody named it.
    backlog, standing, breaker: see `core.routing.node_health` and `core.routing.circuit_breaker`.
    returned_at: when it came back from being down, by the registry's clock. outrun: requests under
    way that another node answered first, though this one had more time for them; by `id`, since
    equal requests are not the same. loading: models that a request of ours is loading. distrusted:
    models whose vectors are not those of other nodes.
    """

    __slots__ = (
        "_concurrency",
        "_load_seconds",
        "_options",
        "_steady",
        "_warmed",
        "backlog",
        "breaker",
        "costs",
        "counters",
        "distrusted",
        "disturbed_at",
        "is_draining",
        "last_done",
        "loading",
        "outrun",
        "returned_at",
        "source",
        "speaks_base64",
        "standing",
        "state",
        "talk_costs",
    )

    def __init__(
        self, spec: NodeSpec, room: Room | None = None, source: Source | None = None
    ) -> None:
        super().__init__(spec.name, spec.max_concurrency, room)
        self.state = NodeState(spec)
        self.counters = NodeCounters()
        self.costs: dict[str, Cost] = {}
        self.talk_costs: dict[WorkKind, Cost] = {}
        self.speaks_base64: bool | None = None
        self.source = source
        self.last_done = 0.0
        self.disturbed_at = 0.0
        self.returned_at = -math.inf
        self.is_draining = False
        self.outrun: set[int] = set()
        self.backlog = Backlog()
        self.standing = NodeHealth()
        self.breaker: Breaker = breakers.CLOSED
        self.loading: set[str] = set()
        self.distrusted: set[str] = set()
        self._steady: dict[tuple[str, str], Steady] = {}
        self._warmed: set[str] = set()
        self._options: dict[str, object] = {}
        self._load_seconds: dict[str, float] = {}
        self._concurrency: dict[WorkKind, Concurrency] = {}

    def __repr__(self) -> str:
        condition = "down" if self.state.is_down else "up" if self.is_known else "unknown"
        return f"<Node {self.name} {condition}, {self.in_flight} in flight>"

    # What is known.

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
        """MB of free GPU memory, as the original counts it; None if unknown."""
        free = memory.gpu_free(self.state)
        return None if free is None else free / 1e6

    @property
    def latency(self) -> float:
        """Seconds that it usually takes to answer; 0 before its first answer."""
        return self.counters.latency

    def has_model(self, model: str) -> bool:
        return self.state.has_model(model)

    def digest(self, model: str) -> str:
        """Of `model`, as the node says; "" if it does not."""
        known = self.state.find_model(model)
        return "" if known is None else known.digest

    def is_distrusted(self, model: str) -> bool:
        """Whether its vectors of `model` are not those of other nodes."""
        return full_name(model) in self.distrusted

    # What a request costs.

    def cost(self, model: str) -> Cost:
        """What embedding with `model` costs here, as far as is known."""
        return self.costs.get(full_name(model)) or Cost.unknown(gpu=self.state.has_gpu())

    def seconds(self, request: RouteRequest) -> float | None:
        """What a request takes alone; None if the node never answered one of its kind."""
        steady = self._steady.get((full_name(request.model), request.kind))
        return None if steady is None else steady.seconds(request.tokens)

    def ahead(self, now: float) -> float:
        """Seconds until it is done with all that this program gave it."""
        return self.backlog.ahead(now)

    def is_cold(self, model: str, options: object = None) -> bool:
        """Whether it will have to load `model` first, as far as is known.

        options: what about the request makes a server load the model anew, see
        `core.request.reload_key`.
        """
        # What is not known is taken for cold: to load again what is there costs next to nothing.
        loaded = self.state.loaded or ()
        name = full_name(model)
        return (name not in self._warmed and name not in loaded) or self.reloads(model, options)

    def reloads(self, model: str, options: object) -> bool:
        """Whether it would load `model` anew, which it used last with other options."""
        name = full_name(model)
        return name in self._options and self._options[name] != options

    def load_seconds(self, model: str) -> float:
        """Seconds to load `model` first; 0 if it is in memory, or is being loaded already."""
        name = full_name(model)
        loaded = self.state.loaded
        if loaded is None or name in self._warmed or name in loaded or name in self.loading:
            return 0.0
        return self._load_seconds.get(name, _GUESSED_LOAD_SECONDS)

    def fits(self, model: str) -> bool | None:
        """Whether `model` is in GPU memory or has room there; None if unknown."""
        return memory.fits(self.state, model)

    # What was learned from answers.

    def learn(self, model: str, tokens: float, sent_at: float, now: float) -> Cost:
        """An embedding of `tokens`, sent at `sent_at`, was answered: learn what it cost.

        What counts is the time that the node worked on it alone. A node computes one request after
        another, so that began when it was done with the one before. If one beside it failed or was
        cancelled, nobody knows when that was, and nothing is learned.
        """
        name = full_name(model)
        known = self.costs.get(name) or Cost.unknown()
        if sent_at < self.disturbed_at:
            return known
        worked_from = max(sent_at, self.last_done)
        self.costs[name] = cost = known.observe(tokens, now - worked_from)
        self._follow(WorkKind(name, "embed"), cost)
        return cost

    def teach(self, model: str, tokens: float, sent_at: float, now: float) -> None:
        """As if it had just answered an embedding of `tokens`, sent at `sent_at`."""
        self.standing.asked(sent_at)
        self.learn(model, tokens, sent_at, now)

    def adopt_cost(self, model: str, cost: Cost) -> bool:
        """Take the cost of `model` from another program. Returns whether it was unknown here."""
        if model in self.costs:
            return False
        self.costs[model] = cost
        return True

    def adopt_answers(self, other: Node) -> None:
        """Take what another `Node` of the same server learned from its answers, and its counts."""
        self.costs = other.costs
        self.counters = other.counters

    def learn_talk(self, work: WorkKind, tokens: float, seconds: float) -> None:
        """A chat or generate with a prompt of `tokens` was answered in `seconds`."""
        known = self.talk_costs.get(work) or Cost.unknown()
        self.talk_costs[work] = cost = known.observe(tokens, seconds)
        self._follow(work, cost)

    def _follow(self, work: WorkKind, cost: Cost) -> None:
        steady = self._steady.get(work)
        if steady is None:
            self._steady[work] = Steady(cost)
        else:
            steady.follow(cost)

    def learn_limit(self, work: WorkKind, sample: LatencySample) -> None:
        """A live request ended: adapt how many there should be at once."""
        known = self._concurrency.get(work) or concurrency_limit.start(self.spec.max_concurrency)
        self._concurrency[work] = adapted = concurrency_limit.adapt(known, sample)
        if len(self._concurrency) == 1:
            self.adapt(adapted.allowed)
        else:
            self.adapt(max(each.allowed for each in self._concurrency.values()))

    def warmed(self, model: str, options: object) -> None:
        """`model` answered, so it is in memory, with these options."""
        name = full_name(model)
        self._warmed.add(name)
        self._options[name] = options

    def learn_base64(self, is_base64: bool) -> None:
        """It answered vectors in base64, or as numbers although asked for base64."""
        self.speaks_base64 = is_base64

    def learn_load(self, model: str, seconds: float) -> None:
        """Loading `model` and answering with it took `seconds`."""
        self._load_seconds[full_name(model)] = seconds

    def forget_warmed(self) -> None:
        """The node has told what it has in memory: that counts, and not what we concluded."""
        self._warmed.clear()

    # Accounts.

    def begin(self, seconds: float, now: float) -> None:
        """A request that should take `seconds` is sent. `end` must follow."""
        self.backlog.enter(seconds, now)
        self.standing.asked(now)

    def end(self, seconds: float, now: float, *, is_live: bool) -> None:
        """A request ended, however it did. `seconds` must be what `begin` was given."""
        self.backlog.leave(seconds, now)
        self.leave(is_live=is_live)

    def succeed(self, sent_at: float, now: float, *, vectors: int = 0, tokens: int = 0) -> None:
        """A request was answered. vectors, tokens: in the answer, as the server counted them."""
        counters = self.counters
        counters.success(now - sent_at)
        counters.vectors += vectors
        counters.tokens += tokens
        self.last_done = now

    def fail(self, now: float, *, is_rejected: bool) -> None:
        """A request failed. is_rejected: it was refused for what it says."""
        if is_rejected:
            self.counters.rejected += 1
        else:
            self.counters.failed += 1
        self._disturb(now)

    def cancel(self, now: float) -> None:
        """A request was given up by us."""
        self.counters.cancelled += 1
        self._disturb(now)

    def _disturb(self, now: float) -> None:
        # What was sent beside a request that had no answer tells nothing of its cost.
        self.disturbed_at = now

    def count_vectors(self, count: int) -> None:
        """An answer that was passed on unread held `count` vectors."""
        self.counters.vectors += count

    def begin_load(self, model: str, now: float) -> float:
        """A load of `model` is sent; the seconds that it should take. `end_load` must follow."""
        seconds = self.load_seconds(model)
        self.loading.add(full_name(model))
        # Work of its own: it goes on when all who wait for it have left.
        self.backlog.enter(seconds, now)
        return seconds

    def end_load(self, model: str, seconds: float, now: float) -> None:
        """A load ended, however it did. `seconds` must be what `begin_load` returned."""
        self.loading.discard(full_name(model))
        self.backlog.leave(seconds, now)

    def mark_outrun(self, request: RouteRequest) -> None:
        """Another node answered `request` first, though this one had more time for it."""
        self.outrun.add(id(request))

    def take_outrun(self, request: RouteRequest) -> bool:
        """Whether `request` was marked as outrun here; True once."""
        if id(request) not in self.outrun:
            return False
        self.outrun.remove(id(request))
        return True

    # What its operator, or its client, decides.

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
        """Whether its vectors of `model` are those of other nodes. Returns whether that is news."""
        name = full_name(model)
        if is_right is (name not in self.distrusted):
            return False
        if is_right:
            self.distrusted.discard(name)
        else:
            self.distrusted.add(name)
        return True

    def mirror(self, *, is_draining: bool, distrusted: Collection[str]) -> None:
        """Be in a worker as the node is in its client."""
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
        )


def has_same_vectors(node: Node, model: str, digest: str | None) -> bool:
    """Whether the vectors of `model` on `node` may stand beside those of the other nodes."""
    if node.is_distrusted(model):
        return False
    return digest is None or node.digest(model) == digest
