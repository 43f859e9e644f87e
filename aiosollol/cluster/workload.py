"""Requests of one kind for one model on one node: how many there are, and what they cost."""

from __future__ import annotations

from aiosollol.core.routing.chat_cost import ChatCost, ChatSeconds
from aiosollol.core.routing.concurrency_limit import Concurrency
from aiosollol.core.routing.node_health import Steady
from aiosollol.core.routing.output_lengths import LengthsByLimit
from aiosollol.core.routing.running_chats import RunningChats
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.live_traffic import LiveTraffic

CHATS = frozenset(("chat", "generate"))


class Workload:
    """Live requests of one kind for one model. Only the node that they are for changes it.

    model: its full name.
    kind: "embed", "chat", "generate" or "load".
    line: the name of their line in the waiting room.
    in_flight, queued: how many have a slot and how many wait for one.
    queued_seconds: what those that wait are expected to take.
    allowed: how many may have a slot.
    concurrency: the state of that limit.
    steady: the cost by wall time; None until one was answered.
    cost: the same, before smoothing.
    chats: the chats in flight; None for other kinds.
    chat_cost, lengths: of chats, as the server reports them.
    traffic: such requests on all nodes.
    """

    __slots__ = (
        "_predicted",
        "_predicted_for",
        "allowed",
        "chat_cost",
        "chats",
        "concurrency",
        "cost",
        "in_flight",
        "kind",
        "lengths",
        "line",
        "model",
        "queued",
        "queued_seconds",
        "steady",
        "traffic",
    )

    def __init__(
        self,
        node: str,
        model: str,
        kind: str,
        concurrency: Concurrency,
        lengths: LengthsByLimit,
        traffic: LiveTraffic,
    ) -> None:
        self.model = model
        self.kind = kind
        self.line = f"{node} {model} {kind}"
        self.in_flight = 0
        self.queued = 0
        self.queued_seconds = 0.0
        self.concurrency = concurrency
        self.allowed = concurrency.allowed
        self.steady: Steady | None = None
        self.cost = Cost.unknown()
        self.chats = RunningChats() if kind in CHATS else None
        self.chat_cost = ChatCost()
        self._predicted_for: tuple[float, ...] | None = None
        self._predicted: ChatSeconds | None = None
        self.lengths = lengths
        self.traffic = traffic

    def chat_seconds(self, request: RouteRequest, *, is_home: bool) -> ChatSeconds | None:
        """Predicted seconds of a chat that has a slot; None if none was answered here."""
        if self.chats is None:
            return None
        chats, limit = self.chats, request.max_output
        key = (request.tokens, limit, is_home, len(chats), chats.slots, self.lengths.answers)
        if key == self._predicted_for:  # asked again on the way of the same request
            return self._predicted
        prefill = self.chat_cost.prefill(request.tokens, is_home=is_home)
        if prefill is None:
            return None
        active = min(len(chats) + 1, chats.slots)
        tokens = self.lengths.of(limit).expected(limit)
        self._predicted_for = key
        self._predicted = ChatSeconds(prefill, tokens * self.chat_cost.decode.seconds(active))
        return self._predicted

    def adapt(self, concurrency: Concurrency) -> None:
        """Set the state of the limit."""
        self.concurrency = concurrency
        self.allowed = concurrency.allowed

    def learn_cost(self, cost: Cost) -> None:
        """Set the cost by wall time."""
        self.cost = cost
        if self.steady is None:
            self.steady = Steady(cost)
        else:
            self.steady.follow(cost)
