"""The routing strategies for live requests, by name.

A strategy picks one of the eligible nodes. If that node is at its limit, the request waits in its
queue: `"performance"` picks such a node if waiting for it is faster than a free slow one; the
other strategies only if every node is at its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, cast

from aiosollol.core.routing.node_health import RETURN_SECONDS, NodeHealth, share
from aiosollol.errors import InvalidInput

if TYPE_CHECKING:
    from random import Random

CLOSE = 0.1
"""Nodes whose predicted time is within this fraction of the best count as equally good."""
STICKY = 2.5
"""A conversation stays on the node with its cache up to this multiple of the best prediction."""

_GUESSED_SECONDS = 1.0  # for a request, until any node has answered one
_UNKNOWN_CPU_LOAD = 0.5
_LEAST_GPU_MB = 1.0


class RouteRequest(NamedTuple):
    """A request to be routed.

    tokens: estimated tokens.
    kind: "embed", "chat" or "generate"; costs are learned per kind.
    home: name of the node with the conversation's prompt cache: the last to answer. Hashing the
    conversation instead would spread conversations evenly over unequal nodes, and send one that had
    to move back to a node without its cache.
    digest: required digest of the model, where vectors must be comparable; None for any.
    max_output: most tokens of the answer (``num_predict``); 0 if there is no limit.
    can_move: whether the request can move to another node until it is answered. A stream that has
    begun cannot, so it must not be used as a probe of a failed node.
    """

    model: str
    tokens: float = 0.0
    kind: str = "embed"
    home: str | None = None
    digest: str | None = None
    can_move: bool = True
    max_output: int = 0


class NodeLoad(Protocol):
    """What a strategy can read from a node. Durations are seconds.

    priority: lower is preferred.
    in_flight: this program's requests in flight on it.
    queued: this program's requests waiting for a slot on it.
    limit: maximum number in flight, of the kinds in flight now.
    latency: smoothed latency of recent answers; 0 before the first.
    cpu_load: 0 to 1; None if unknown.
    gpu_free_mem: MB; None if unknown.
    returned_at: when it came back from being down; -inf if it was never down.
    standing: its node health.

    seconds(request): time for the request alone; None if the node never answered such a request.
    ahead(now): time until the requests in flight are done, without the queued ones.
    wait(request, now): time until it would begin, behind those in flight and queued.
    load_seconds(model): time of the model load; 0 if it is in memory.
    fits(model): whether the model can be loaded without evicting another; None if unknown.
    has_slot(request): whether a slot is free for the request.
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
    def wait(self, request: RouteRequest, now: float) -> float: ...
    def load_seconds(self, model: str) -> float: ...
    def fits(self, model: str) -> bool | None: ...
    def has_slot(self, request: RouteRequest) -> bool: ...


class RoutingFunction(Protocol):
    """A strategy: returns one of `nodes`, a non-empty sequence of eligible nodes.

    Users may pass their own. It runs in the event loop for every request, so it must be fast.
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
    """The node for `request`: the conversation's home unless much slower, else the strategy's pick.

    nodes: the eligible nodes (`why_not`), at least one. A node that has just returned is left out
    at random, so that it gets its `share`. Raises InvalidInput if a custom strategy returns
    anything but one of the nodes.
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
    with_room = [node for node in nodes if node.has_slot(request)] or nodes
    chosen = strategy(with_room, request, now, rng)
    if not any(chosen is node for node in with_room):
        raise InvalidInput(f"the routing function must return one of its nodes, not {chosen!r}")
    return cast(NodeT, chosen)


def _stays(home: NodeLoad, nodes: Sequence[NodeLoad], request: RouteRequest, now: float) -> bool:
    expected = predict(nodes, request, now)
    at_home = next(e for node, e in zip(nodes, expected, strict=True) if node is home)
    return at_home <= STICKY * min(expected)


def predict(nodes: Iterable[NodeLoad], request: RouteRequest, now: float) -> list[float]:
    """Predicted seconds until each node would answer.

    (wait + its own seconds + model load) x `NodeHealth.factor`. The load counts twice if another
    model must be evicted, because that one will have to be loaded again.

    An idle node that never answered such a request but has the model in memory gets 0, so it is
    tried first. With a request in flight, or a model load, it counts like the mean of the others,
    so that not all requests try it at once.
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
            alone += seconds
            whole = node.wait(request, now) + seconds + load
            expected.append(whole * node.standing.factor(now))
    if untried:
        known = len(expected) - len(untried)
        # The seconds alone, without queued requests: otherwise a node that must load the model
        # would never win, however long the queues of the others.
        guess = alone / known if known else _GUESSED_SECONDS
        for index, node, load in untried:
            busy = node.in_flight + node.queued
            ahead = node.wait(request, now)  # other kinds of request, and model loads
            if busy or load or ahead:
                waits = max(busy * guess, ahead) + guess + load
                expected[index] = waits * node.standing.factor(now)
    return expected


def performance(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """The node predicted to answer first.

    If several are close to the best, the better of two random ones, so that programs with the same
    information do not all pick the same node (Mitzenmacher, "The Power of Two Choices in
    Randomized Load Balancing", 2001).
    """
    expected = predict(nodes, request, now)
    best = min(expected)
    at_most = best + CLOSE * best
    close = [index for index, seconds in enumerate(expected) if seconds <= at_most]
    if len(close) == 1:
        return nodes[close[0]]
    # Two different ones, in random order; `rng.sample` would double the cost of this function.
    first = int(rng.random() * len(close))
    second = int(rng.random() * (len(close) - 1))
    one, other = close[first], close[second + (second >= first)]
    return nodes[one if expected[one] <= expected[other] else other]


class ScoreTerms(NamedTuple):
    """The terms of the original's formula. Their sum is the score; the lowest is best."""

    cpu: float
    gpu: float
    priority: float
    latency: float
    failures: float


def score_terms(node: NodeLoad, now: float) -> ScoreTerms:
    """``cpu_load*0.3 + (1/gpu_free_mem)*0.2 + priority*0.1 + (latency_ms/1000)*0.2 +
    (1-success_rate)*0.2``, as in the original.

    cpu_load: 0 to 1; 0.5 if unknown, as in the original.
    gpu_free_mem: MB; below 1 or unknown counts as 1, which gives 0.2, as in the original. So a GPU
    with 100 MB free scores about the same as one with 80,000.
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
    """The node with the lowest score, regardless of its load; the first of equals."""
    return min(nodes, key=lambda node: sum(score_terms(node, now)))


def least_loaded(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """The node with the fewest of this program's requests; the faster of equals."""
    return min(nodes, key=lambda node: (node.in_flight + node.queued, node.latency))


def by_priority(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """The least loaded of the nodes with the lowest priority number."""
    return min(nodes, key=lambda n: (n.priority, n.in_flight + n.queued, n.latency))


def at_random(
    nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random, /
) -> NodeLoad:
    """A random node."""
    return rng.choice(nodes)


class RoundRobin:
    """Nodes in turn: the one chosen longest ago."""

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
    """The strategy with that name, or the function itself. Raises InvalidInput if unknown."""
    if callable(strategy):
        return strategy
    make = _STRATEGIES.get(strategy) if isinstance(strategy, str) else None
    if make is None:
        raise InvalidInput(
            f"unknown routing strategy {strategy!r}; use one of {', '.join(STRATEGIES)}, "
            "or pass a function"
        )
    return make()
