"""What requests cost on one node, as learned from its answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from aiosollol.cluster.slots import NodeSlots, Room
from aiosollol.cluster.workload import CHATS, Workload
from aiosollol.core.model_names import full_name
from aiosollol.core.node import ONE_SLOT_FAMILIES, NodeSpec, NodeState
from aiosollol.core.routing.chat_cost import ChatSeconds
from aiosollol.core.routing.concurrency_limit import start
from aiosollol.core.routing.load_times import HUNG_LOADS, LoadTimes
from aiosollol.core.routing.output_lengths import LengthsByLimit
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.live_traffic import LiveTraffic
from aiosollol.core.timings import ServerTimings

_MOST_SPELLINGS = 1000  # of model names, which are kept to find a workload fast


@dataclass(frozen=True, slots=True)
class SharedBeliefs:
    """What was learned on all nodes of a cluster together.

    load_times: seconds of model loads.
    output_lengths: lengths of answers, by model and kind of request.
    traffic: live requests, by the same.
    """

    load_times: LoadTimes = field(default_factory=LoadTimes)
    output_lengths: dict[tuple[str, str], LengthsByLimit] = field(default_factory=dict)
    traffic: dict[tuple[str, str], LiveTraffic] = field(default_factory=dict)


class NodeCosts(NodeSlots):
    """The base of `Node` that predicts and learns how long requests and model loads take.

    state: the node's known state.
    costs: costs of embedding, by full model name.
    last_done: time of its last answer.
    disturbed_at: time of the last request that failed or was cancelled.
    loading: models that a request of this program is loading.
    embeds: models that it has embedded with, and the time of the first answer, since the model's
    digest and the server's version last changed.
    has_chats: whether it was asked for a chat or generate.
    has_news: whether `embeds` has grown.
    """

    __slots__ = (
        "_by_request",
        "_options",
        "_shared",
        "_warmed",
        "costs",
        "disturbed_at",
        "embeds",
        "has_chats",
        "has_news",
        "last_done",
        "loading",
        "state",
    )

    def __init__(self, spec: NodeSpec, room: Room | None, shared: SharedBeliefs | None) -> None:
        super().__init__(spec.name, spec.max_concurrency, room)
        self.state = NodeState(spec)
        self.costs: dict[str, Cost] = {}
        self.last_done = 0.0
        self.disturbed_at = 0.0
        self.loading: set[str] = set()
        self.embeds: dict[str, float] = {}
        self.has_news = False
        self.has_chats = False
        self._by_request: dict[tuple[str, str], Workload] = {}
        self._warmed: set[str] = set()
        self._options: dict[str, object] = {}
        self._shared = SharedBeliefs() if shared is None else shared

    def workload(self, request: RouteRequest) -> Workload:
        """The requests of the same kind for the same model here."""
        work = self._by_request.get((request.model, request.kind))
        return self._new_workload(request) if work is None else work

    def _new_workload(self, request: RouteRequest) -> Workload:
        name, kind = full_name(request.model), request.kind
        work = next((w for w in self._workloads if (w.model, w.kind) == (name, kind)), None)
        if work is None:
            model = self.state.find_model(name)
            has_one_slot = kind in CHATS and model is not None and model.family in ONE_SLOT_FAMILIES
            limit = start(self.state.spec.max_concurrency, has_one_slot=has_one_slot)
            lengths = self._shared.output_lengths.setdefault((name, kind), LengthsByLimit())
            traffic = self._shared.traffic.setdefault((name, kind), LiveTraffic())
            work = Workload(self.name, name, kind, limit, lengths, traffic)
            self._workloads.append(work)
            self.has_chats = self.has_chats or work.chats is not None
        if len(self._by_request) < _MOST_SPELLINGS:
            self._by_request[request.model, kind] = work
        return work

    def has_slot(self, request: RouteRequest) -> bool:
        """Whether a slot is free for `request`."""
        return self.has_room(self.workload(request))

    def expects_live(self, now: float) -> bool:
        """Whether it has live requests, or may get one: some were for its models a moment ago."""
        return any(
            work.in_flight or work.queued or work.traffic.is_expected(now)
            for work in self._workloads
        )

    def cost(self, model: str) -> Cost:
        """The known or assumed cost of embedding with `model` on this node."""
        return self.costs.get(full_name(model)) or Cost.unknown(gpu=self.state.has_gpu())

    def seconds(self, request: RouteRequest) -> float | None:
        """Predicted seconds for a request alone; None if it never answered one of its kind."""
        # As `workload`, without the call: this is asked of each node for each request.
        work = self._by_request.get((request.model, request.kind)) or self._new_workload(request)
        if work.chats is not None:
            chat = work.chat_seconds(request, is_home=request.home == self.name)
            if chat is not None:
                return chat.prefill + chat.decode
        return None if work.steady is None else work.steady.seconds(request.tokens)

    def chat_seconds(self, request: RouteRequest) -> ChatSeconds | None:
        """The same for a chat, in parts, from the server's own timings; None if there are none."""
        return self.workload(request).chat_seconds(request, is_home=request.home == self.name)

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
        return self._shared.load_times.seconds(self.name, name, self._size(name))

    def hung_load_seconds(self, model: str) -> float:
        """Seconds after which a load of `model` hangs; infinity if none was seen on any node."""
        name = full_name(model)
        known = self._shared.load_times.known(name, self._size(name))
        return math.inf if known is None else HUNG_LOADS * known

    def learn(
        self, request: RouteRequest, tokens: float, sent_at: float, now: float, load: float = 0.0
    ) -> Cost:
        """Learn the cost of an embedding of `tokens`, sent at `sent_at` and answered now.

        Only the time that the node worked on it counts. A node computes one request after another,
        so work began at the end of the previous one. If a request failed or was cancelled since
        `sent_at`, that time is unknown, and nothing is learned. An answer for which the server had
        to load the model shows the cost only until another one does.

        load: seconds of that load.
        """
        work = self.workload(request)
        name = work.model
        if name not in self.embeds:
            self.embeds[name] = now
            self.has_news = True
        known = self.costs.get(name) or Cost.unknown()
        if sent_at < self.disturbed_at or (load and name in self.costs):
            return known
        worked_from = max(sent_at, self.last_done)
        self.costs[name] = cost = known.observe(tokens, now - worked_from - load)
        work.learn_cost(cost)
        return cost

    def adopt_cost(self, model: str, cost: Cost) -> bool:
        """Adopt a cost of `model` from another program. Returns whether it was unknown here."""
        if model in self.costs:
            return False
        self.costs[model] = cost
        return True

    def learn_talk(self, work: Workload, tokens: float, seconds: float) -> None:
        """Learn from another request with a prompt of `tokens`, answered in `seconds`."""
        work.learn_cost(work.cost.observe(tokens, seconds))

    def learn_chat(
        self, request: RouteRequest, prefill: float, timings: ServerTimings, active: float
    ) -> None:
        """Learn from a chat. The arguments are those of `ChatCost.observe`."""
        work = self.workload(request)
        is_home = request.home == self.name
        work.chat_cost.observe(request.tokens, prefill, timings, active, is_home=is_home)
        work.lengths.observe(timings.output_tokens, request.max_output)

    def warmed(self, model: str, options: object) -> None:
        """Record that `model` answered, so it is in memory with these options."""
        name = full_name(model)
        self._warmed.add(name)
        self._options[name] = options

    def learn_load(self, model: str, seconds: float) -> None:
        """Record that loading `model` and answering took `seconds`."""
        name = full_name(model)
        self._shared.load_times.observe(self.name, name, self._size(name), seconds)

    def _size(self, name: str) -> int:
        known = self.state.find_model(name)
        return 0 if known is None else known.size

    def forget_warmed(self) -> None:
        """Drop the inferred loaded models, after the node reported the actual ones."""
        self._warmed.clear()

    def take_news(self) -> None:
        """Reset `has_news`."""
        self.has_news = False
