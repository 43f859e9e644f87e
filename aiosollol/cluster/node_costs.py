"""What requests cost on one node, as learned from its answers."""

from __future__ import annotations

from typing import NamedTuple

from aiosollol.cluster.slots import NodeSlots, Room
from aiosollol.core.model_names import full_name
from aiosollol.core.node import NodeSpec, NodeState
from aiosollol.core.routing.load_times import LoadTimes
from aiosollol.core.routing.node_health import Steady
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.scheduling.cost import Cost


class WorkKind(NamedTuple):
    """The key of a learned cost or limit: a model by its full name, and a kind of request."""

    model: str
    kind: str


class NodeCosts(NodeSlots):
    """The base of `Node` that predicts and learns how long requests and model loads take.

    load_times: those of the whole cluster.
    state: the node's known state.
    costs: costs of embedding, by full model name.
    talk_costs: costs of other requests.
    last_done: time of its last answer.
    disturbed_at: time of the last request that failed or was cancelled.
    loading: models that a request of this program is loading.
    embeds: models that it has embedded with, and the time of the first answer, since the model's
    digest and the server's version last changed.
    has_news: whether `embeds` has grown.
    """

    __slots__ = (
        "_load_times",
        "_options",
        "_steady",
        "_warmed",
        "costs",
        "disturbed_at",
        "embeds",
        "has_news",
        "last_done",
        "loading",
        "state",
        "talk_costs",
    )

    def __init__(self, spec: NodeSpec, room: Room | None, load_times: LoadTimes | None) -> None:
        super().__init__(spec.name, spec.max_concurrency, room)
        self.state = NodeState(spec)
        self.costs: dict[str, Cost] = {}
        self.talk_costs: dict[WorkKind, Cost] = {}
        self.last_done = 0.0
        self.disturbed_at = 0.0
        self.loading: set[str] = set()
        self.embeds: dict[str, float] = {}
        self.has_news = False
        self._steady: dict[tuple[str, str], Steady] = {}
        self._warmed: set[str] = set()
        self._options: dict[str, object] = {}
        self._load_times = LoadTimes() if load_times is None else load_times

    def cost(self, model: str) -> Cost:
        """The known or assumed cost of embedding with `model` on this node."""
        return self.costs.get(full_name(model)) or Cost.unknown(gpu=self.state.has_gpu())

    def seconds(self, request: RouteRequest) -> float | None:
        """Predicted seconds for a request alone; None if it never answered one of its kind."""
        steady = self._steady.get((full_name(request.model), request.kind))
        return None if steady is None else steady.seconds(request.tokens)

    def is_cold(self, model: str, options: object = None) -> bool:
        """Whether it must load `model` first, as far as is known.

        options: options that force a reload, see `core.request.reload_key`.
        """
        # Unknown counts as cold: a redundant load request costs almost nothing.
        loaded = self.state.loaded or ()
        name = full_name(model)
        return (name not in self._warmed and name not in loaded) or self.reloads(model, options)

    def reloads(self, model: str, options: object) -> bool:
        """Whether it would reload `model`, because it last used it with other options."""
        name = full_name(model)
        return name in self._options and self._options[name] != options

    def last_options(self, model: str) -> object:
        """The options that it last used `model` with: see `core.request.reload_key`."""
        return self._options.get(full_name(model))

    def load_seconds(self, model: str) -> float:
        """Seconds of the model load; 0 if `model` is in memory or already being loaded."""
        name = full_name(model)
        loaded = self.state.loaded
        if loaded is None or name in self._warmed or name in loaded or name in self.loading:
            return 0.0
        return self._load_times.seconds(self.name, name, self._size(name))

    def learn(
        self, model: str, tokens: float, sent_at: float, now: float, load: float = 0.0
    ) -> Cost:
        """Learn the cost of an embedding of `tokens`, sent at `sent_at` and answered now.

        Only the time that the node worked on it counts. A node computes one request after another,
        so work began at the end of the previous one. If a request failed or was cancelled since
        `sent_at`, that time is unknown, and nothing is learned. An answer for which the server had
        to load the model shows the cost only until another one does.

        load: seconds of that load.
        """
        name = full_name(model)
        if name not in self.embeds:
            self.embeds[name] = now
            self.has_news = True
        known = self.costs.get(name) or Cost.unknown()
        if sent_at < self.disturbed_at or (load and name in self.costs):
            return known
        worked_from = max(sent_at, self.last_done)
        self.costs[name] = cost = known.observe(tokens, now - worked_from - load)
        self._follow(WorkKind(name, "embed"), cost)
        return cost

    def adopt_cost(self, model: str, cost: Cost) -> bool:
        """Adopt a cost of `model` from another program. Returns whether it was unknown here."""
        if model in self.costs:
            return False
        self.costs[model] = cost
        return True

    def learn_talk(self, work: WorkKind, tokens: float, seconds: float) -> None:
        """Learn from a chat or generate with a prompt of `tokens`, answered in `seconds`."""
        known = self.talk_costs.get(work) or Cost.unknown()
        self.talk_costs[work] = cost = known.observe(tokens, seconds)
        self._follow(work, cost)

    def _follow(self, work: WorkKind, cost: Cost) -> None:
        steady = self._steady.get(work)
        if steady is None:
            self._steady[work] = Steady(cost)
        else:
            steady.follow(cost)

    def warmed(self, model: str, options: object) -> None:
        """Record that `model` answered, so it is in memory with these options."""
        name = full_name(model)
        self._warmed.add(name)
        self._options[name] = options

    def learn_load(self, model: str, seconds: float) -> None:
        """Record that loading `model` and answering took `seconds`."""
        name = full_name(model)
        self._load_times.observe(self.name, name, self._size(name), seconds)

    def _size(self, name: str) -> int:
        known = self.state.find_model(name)
        return 0 if known is None else known.size

    def forget_warmed(self) -> None:
        """Drop the inferred loaded models, after the node reported the actual ones."""
        self._warmed.clear()

    def take_news(self) -> None:
        """Reset `has_news`."""
        self.has_news = False
