"""Which node gets a live request: the strategies, by name.

A strategy is given the eligible nodes and answers with one of them. If that one is at its limit,
the request waits in its line: `"performance"` chooses so when waiting for a fast node takes less
time than a slow one that is free; the others only when every node is at its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

from aiosollol.core.routing.node_health import RETURN_SECONDS, NodeHealth, share
from aiosollol.errors import InvalidInput

if TYPE_CHECKING:
    from random import Random

CLOSE = 0.1
"""Nodes whose predicted time is within this fraction of the best are as good as it."""
STICKY = 2.5
"""Times what it would take elsewhere that a conversation waits for the node with its cache."""

_GUESSED_SECONDS = 1.0  # for a request, while no node has answered any
_UNKNOWN_CPU_LOAD = 0.5
_LEAST_GPU_MB = 1.0


class RouteRequest(NamedTuple):
    """What is to be routed.

    tokens: estimated. kind: "embed", "chat" or "generate", where nodes keep their costs apart.
    home: the node that has the conversation's prompt cache, by name: the one that answered last.
    It is remembered rather than found by hashing the conversation, which would spread conversations
    evenly over unequal nodes, and send one that had to move back to where its cache is not.
    digest: of the model, where only vectors of one and the same are of use.
    can_move: whether another node can be asked as long as there is no answer. A stream that has
    begun cannot go anywhere else, so it is no probe of a node that failed.
    """

    model: str
    tokens: float = 0.0
    kind: str = "embed"
    home: str | None = None
    digest: str | None = None
    can_move: bool = True


class NodeLoad(Protocol):
    """What a strategy must know of a node. Durations are seconds.

    in_flight: this program's requests under way on it; queued: those waiting for a place on it;
    limit: how many may be under way. latency: of recent answers, smoothed; 0 before the first.
    cpu_load: 0 to 1,
    gpu_free_mem: in MB, None where unknown. returned_at: when it came back from being down, minus
    infinity if it was never away.

    seconds(request): what it takes alone; None if the node has never answered such a request.
    ahead(now): until it is done with what is under way, not with those queued.
    load_seconds(model): 0 if it is in memory. fits(model): whether it can be loaded without
    throwing another out.
    """

    @property
    def name(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def latency(self) -> float: ...
    @property
    def cpu_load(self) -> float | None: ...
    @property
    def gpu_free_mem(self) -> float | None: ...
    @property
    def returned_at(self) -> float: ...
    @property
    def standing(self) -> NodeHealth: ...
    def seconds(self, request: RouteRequest) -> float | None: ...
    def ahead(self, now: float) -> float: ...
    def load_seconds(self, model: str) -> float: ...
    def fits(self, model: str) -> bool | None: ...


class RoutingFunction(Protocol):
    """A strategy: one of `nodes`, of which there is at least one and each is eligible.

    Users may pass their own. It is called in the event loop at every request, so it must be quick.
    """

    def __call__(
        self, nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
    ) -> NodeLoad: ...


NodeT = TypeVar("NodeT", bound=NodeLoad)


def route(
    strategy: RoutingFunction,
    nodes: Sequence[NodeT],
    request: RouteRequest,
    now: float,
    rng: Random,
) -> NodeT:
    """The node for `request`: the strategy's, or the conversation's unless that is much busier.

    nodes: the eligible ones (`why_not`), at least one. One that has just returned is left out at
    random, so that it gets the share that `share` gives it. Raises InvalidInput if a strategy of
    the user's own answers with something else than one of the nodes.
    """
    for node in nodes:
        if now - node.returned_at < RETURN_SECONDS:
            gentle = [n for n in nodes if rng.random() < share(n.returned_at, now)]
            nodes = gentle or nodes
            break
    if len(nodes) == 1:
        return nodes[0]
    if request.home is not None:
        home = next((node for node in nodes if node.name == request.home), None)
        if home is not None and _stays(home, nodes, request, now):
            return home
    if strategy is performance:
        return cast(NodeT, performance(nodes, request, now, rng))
    with_room = [node for node in nodes if node.in_flight < node.limit] or nodes
    chosen = strategy(with_room, request, now, rng)
    if not any(chosen is node for node in with_room):
        raise InvalidInput(f"the routing function answered {chosen!r}, which is none of its nodes")
    return cast(NodeT, chosen)


def _stays(home: NodeLoad, nodes: Sequence[NodeLoad], request: RouteRequest, now: float) -> bool:
    expected = predict(nodes, request, now)
    at_home = next(e for node, e in zip(nodes, expected, strict=True) if node is home)
    return at_home <= STICKY * min(expected)


def predict(nodes: Iterable[NodeLoad], request: RouteRequest, now: float) -> list[float]:
    """Seconds until each node would have answered.

    (work ahead + (queued + 1) x its own seconds + loading the model) x
    `NodeHealth.factor`. Who waits in line is taken to need what this request needs. Loading counts
    twice where another model must make room: that one will have to be loaded again.

    A node that never answered such a request, does nothing, and has the model in memory: 0, so it
    is tried first. With a request under way, or a load, it counts like the mean of the others, so
    that not everybody tries it at once.
    """
    expected: list[float] = []
    alone = 0.0
    untried: list[tuple[int, NodeLoad, float]] = []
    model = request.model
    for node in nodes:
        seconds = node.seconds(request)
        load = node.load_seconds(model)
        if load and node.fits(model) is False:
            load *= 2.0
        if seconds is None:
            untried.append((len(expected), node, load))
            expected.append(0.0)
        else:
            own = seconds * (node.queued + 1)
            alone += seconds
            whole = node.ahead(now) + own + load
            expected.append(whole * node.standing.factor(now))
    if untried:
        known = len(expected) - len(untried)
        # What it takes alone, and not while others wait: else one that must load would never be
        # better than those, however many wait for them.
        guess = alone / known if known else _GUESSED_SECONDS
        for index, node, load in untried:
            busy = node.in_flight + node.queued
            ahead = node.ahead(now)  # of other kinds, and of what is being loaded
            if busy or load or ahead:
                waits = max(busy * guess, ahead) + guess + load
                expected[index] = waits * node.standing.factor(now)
    return expected


def performance(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """The node predicted to answer first.

    Of several that are close to the best, the better of two random ones: several programs that know
    the same must not all go to the same node (Mitzenmacher, "The Power of Two Choices in Randomized
    Load Balancing", 2001).
    """
    expected = predict(nodes, request, now)
    best = min(expected)
    at_most = best + CLOSE * best
    close = [index for index, seconds in enumerate(expected) if seconds <= at_most]
    if len(close) == 1:
        return nodes[close[0]]
    # Two different ones, in random order; `rng.sample` would take as long as all of the rest.
    first = int(rng.random() * len(close))
    second = int(rng.random() * (len(close) - 1))
    one, other = close[first], close[second + (second >= first)]
    return nodes[one if expected[one] <= expected[other] else other]


class ScoreTerms(NamedTuple):
    """The terms of the original's formula; their sum is the score, and the lowest is best."""

    cpu: float
    gpu: float
    priority: float
    latency: float
    failures: float


def score_terms(node: NodeLoad, now: float) -> ScoreTerms:
    """``cpu_load*0.3 + (1/gpu_free_mem)*0.2 + priority*0.1 + (latency_ms/1000)*0.2 +
    (1-success_rate)*0.2``, as in the original.

    cpu_load: 0 to 1, 0.5 where unknown, as there. gpu_free_mem: MB; below 1, or unknown, counts as
    1, which gives 0.2, as much as there. So a GPU with 100 MB free is as good as one with 80,000.
    """
    cpu = _UNKNOWN_CPU_LOAD if node.cpu_load is None else node.cpu_load
    return ScoreTerms(
        cpu * 0.3,
        0.2 / max(_LEAST_GPU_MB, node.gpu_free_mem or 0.0),
        node.priority * 0.1,
        node.latency * 0.2,
        (1.0 - node.standing.success_rate(now)) * 0.2,
    )


def score(nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /) -> NodeLoad:
    """The node with the lowest score, the first of equals, however much is under way on it."""
    return min(nodes, key=lambda node: sum(score_terms(node, now)))


def least_loaded(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """The node with the fewest requests of ours, of equals the one that answers faster."""
    return min(nodes, key=lambda node: (node.in_flight + node.queued, node.latency))


def by_priority(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """The least loaded node of the lowest priority number that is there."""
    return min(nodes, key=lambda n: (n.priority, n.in_flight + n.queued, n.latency))


def at_random(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """Any node."""
    return rng.choice(nodes)


class RoundRobin:
    """One node after the other: the one whose last turn is the longest ago."""

    def __init__(self) -> None:
        self._turn = 0
        self._turns: dict[str, int] = {}

    def __call__(
        self, nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
    ) -> NodeLoad:
        node = min(nodes, key=lambda node: self._turns.get(node.name, 0))
        self._turn += 1
        self._turns[node.name] = self._turn
        return node


_STRATEGIES: dict[str, Callable[[], RoutingFunction]] = {
    "performance": lambda: performance,
    "score": lambda: score,
    "round_robin": RoundRobin,
    "priority": lambda: by_priority,
    "least_loaded": lambda: least_loaded,
    "random": lambda: at_random,
}
STRATEGIES = tuple(_STRATEGIES)


def strategy_of(strategy: str | RoutingFunction) -> RoutingFunction:
    """The strategy of that name, or the function itself. Raises InvalidInput if there is none."""
    if callable(strategy):
        return strategy
    make = _STRATEGIES.get(strategy) if isinstance(strategy, str) else None
    if make is None:
        raise InvalidInput(
            f"unknown routing strategy {strategy!r}; there are {', '.join(STRATEGIES)}, "
            "or pass a function"
        )
    return make()
