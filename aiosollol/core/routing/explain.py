"""Eligibility of nodes for a live request, and a readable explanation of a routing decision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from aiosollol.core.routing.circuit_breaker import Breaker
from aiosollol.core.routing.node_health import share
from aiosollol.core.routing.strategies import (
    NodeLoad,
    RouteRequest,
    RoutingFunction,
    performance,
    predict,
    route,
    score,
    score_terms,
)
from aiosollol.errors import (
    ConnectionLost,
    ModelMissing,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NodeUnreachable,
    ProtocolError,
    ResponseError,
    RunnerFailed,
    ServerBusy,
)

if TYPE_CHECKING:
    from random import Random

    from aiosollol.core.routing.chat_cost import ChatSeconds


class NodeCondition(NodeLoad, Protocol):
    """What eligibility needs to know about a node.

    error: why it is down.
    digest(model): the model's digest; "" if unknown.
    is_distrusted(model): whether its vectors were found to differ from those of the other nodes.
    chat_seconds(request): the seconds of a chat alone, in parts; None if unknown.
    """

    @property
    def is_down(self) -> bool: ...
    @property
    def error(self) -> str: ...
    @property
    def is_draining(self) -> bool: ...
    @property
    def breaker(self) -> Breaker: ...
    def has_model(self, model: str) -> bool: ...
    def digest(self, model: str) -> str: ...
    def is_distrusted(self, model: str) -> bool: ...
    def chat_seconds(self, request: RouteRequest) -> ChatSeconds | None: ...


def why_not(node: NodeCondition, request: RouteRequest, now: float) -> str:
    """Why `node` is not eligible for `request`, for people to read; "" if it is."""
    if node.is_draining:
        return "draining"
    if node.is_down:
        return f"down: {node.error}" if node.error else "down"
    if not node.has_model(request.model):
        return f"lacks the model {request.model}"
    if request.digest is not None and node.digest(request.model) != request.digest:
        found = node.digest(request.model)[:12] or "unknown"
        return f"vectors differ: digest {found}, not {request.digest[:12]}"
    if request.kind == "embed" and node.is_distrusted(request.model):
        return "vectors differ from those of the other nodes (verify compares again)"
    return node.breaker.describe(now)


def why_less(node: NodeLoad, request: RouteRequest, now: float) -> str:
    """Why an eligible node gets fewer requests, for people to read; "" if it does not."""
    reasons = []
    if not node.has_slot(request):
        waiting = f", {node.queued} waiting" if node.queued else ""
        reasons.append(f"at its limit ({node.in_flight} of {node.limit} in flight{waiting})")
    part = share(node.returned_at, now)
    if part < 1.0:
        reasons.append(f"returning, gets {part:.0%} of its share")
    return ", ".join(reasons)


class Setback(NamedTuple):
    """An attempt before the one that answered. problem: what failed; "" if it was only late."""

    node: str
    problem: str = ""

    @classmethod
    def of(cls, error: NodeError) -> Setback:
        """The setback for `error`, without the server's message, which may quote the request."""
        for kind, problem in _PROBLEMS:
            if isinstance(error, kind):
                return cls(error.node, problem or error.detail)
        status = f"status {error.status}" if isinstance(error, ResponseError) else ""
        return cls(error.node, status or "it gave no answer")


# "": the detail of such an error is written by this package, so it is safe to show.
_PROBLEMS: tuple[tuple[type[NodeError], str], ...] = (
    (NodeUnreachable, ""),
    (NodeTimeout, ""),
    (ConnectionLost, ""),
    (ModelMissing, "it lacks the model"),
    (ServerBusy, "its queue is full"),
    (NodeUnavailable, "it is temporarily unavailable"),
    (RunnerFailed, "its model failed"),
    (ProtocolError, "it did not answer as Ollama does"),
)
_MOST_SETBACKS, _MOST_CHARACTERS = 3, 80


def after(setbacks: Sequence[Setback]) -> str:
    """The earlier attempts as a header value: printable ASCII, 600 characters at most.

    For example "after n1 failed: connection refused; n2 was late"; "" if there were none.
    """
    if not setbacks:
        return ""
    parts = [
        f"{_plain(each.node)} failed: {_plain(each.problem)}"
        if each.problem
        else f"{_plain(each.node)} was late"
        for each in setbacks[-_MOST_SETBACKS:]
    ]
    more = len(setbacks) - len(parts)
    return f"after {f'{more} others; ' if more else ''}{'; '.join(parts)}"


def _plain(text: str) -> str:
    short = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
    return "".join(letter if " " <= letter <= "~" else "?" for letter in short)


class NodeExplanation(NamedTuple):
    """One node in a decision.

    reason: why it is not eligible or gets fewer requests; "" otherwise.
    terms: its terms by name, empty if not eligible; durations are seconds.
    """

    name: str
    is_eligible: bool
    reason: str
    terms: dict[str, float]


class RouteExplanation(NamedTuple):
    """The node a request would go to now, and why. `str()` formats it as a table.

    chosen: name of the node; None if no node is eligible.
    waits: whether the request would wait there for a slot.
    """

    strategy: str
    model: str
    chosen: str | None
    waits: bool
    nodes: tuple[NodeExplanation, ...]

    def __str__(self) -> str:
        if self.chosen is None:
            head = f"no node is eligible for {self.model}"
        else:
            verb = "waits for" if self.waits else "goes to"
            head = f"{self.model} {verb} {self.chosen}, by the strategy {self.strategy!r}"
        width = max((len(node.name) for node in self.nodes), default=0)
        lines = [head]
        for node in self.nodes:
            mark = "->" if node.name == self.chosen else "  "
            terms = ", ".join(f"{name} {value:.4g}" for name, value in node.terms.items())
            text = "; ".join(part for part in (terms, node.reason) if part)
            lines.append(f"{mark} {node.name:{width}}  {text}".rstrip())
        return "\n".join(lines)


def explain(
    strategy: RoutingFunction,
    name: str,
    nodes: Iterable[NodeCondition],
    request: RouteRequest,
    now: float,
    rng: Random,
) -> RouteExplanation:
    """What `route` would do with `request`, and why, for all `nodes`, eligible or not.

    name: name of the strategy, for the report. A "round_robin" advances its turn, as in `route`.
    """
    every = list(nodes)
    reasons = [why_not(node, request, now) for node in every]
    eligible = [node for node, reason in zip(every, reasons, strict=True) if not reason]
    chosen = route(strategy, eligible, request, now, rng) if eligible else None
    expected = dict(zip((n.name for n in eligible), predict(eligible, request, now), strict=True))
    explained = tuple(
        NodeExplanation(
            node.name,
            not reason,
            reason or why_less(node, request, now),
            {} if reason else _terms(strategy, node, request, now, expected[node.name]),
        )
        for node, reason in zip(every, reasons, strict=True)
    )
    waits = chosen is not None and not chosen.has_slot(request)
    chosen_name = None if chosen is None else chosen.name
    return RouteExplanation(name, request.model, chosen_name, waits, explained)


def _own_terms(node: NodeCondition, request: RouteRequest) -> dict[str, float]:
    """What the request itself takes; 0 if unknown."""
    seconds = node.seconds(request) or 0.0
    if request.kind == "embed":
        return {"own": seconds}
    chat = node.chat_seconds(request)
    if chat is None:  # only whole answers by the client's clock
        return {"prefill": 0.0, "decode": seconds}
    return {"prefill": chat.prefill, "decode": chat.decode}


def _terms(
    strategy: RoutingFunction,
    node: NodeCondition,
    request: RouteRequest,
    now: float,
    expected: float,
) -> dict[str, float]:
    if strategy is score:
        terms = score_terms(node, now)
        return {"score": sum(terms), **terms._asdict()}
    terms_by_name = {
        "expected": expected,
        "queue": node.wait(request, now),
        **_own_terms(node, request),
        "load": node.load_seconds(request.model),
        "success rate": node.standing.success_rate(now),
        "pace": node.standing.pace(now),
    }
    if strategy is not performance:
        terms_by_name |= {"in flight": node.in_flight, "queued": node.queued}
        terms_by_name["priority"] = node.priority
    return terms_by_name
