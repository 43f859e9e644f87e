"""All nodes of a pool, and everything that changes what is known of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import anyio

from aiosollol.cluster.event_hub import EventHub
from aiosollol.cluster.node import Node
from aiosollol.cluster.slots import Gate, Room
from aiosollol.core.events import NodeChanged, PoolEvent
from aiosollol.core.locality import NO_FACTS, MachineFacts, duplicates, machines_of
from aiosollol.core.networks import Source
from aiosollol.core.node import ClusterView, NodeLike, NodeSpec, full_name
from aiosollol.core.node_transitions import (
    Answered,
    Described,
    Event,
    Failed,
    Probed,
    advance,
)
from aiosollol.core.redaction import safe_repr
from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing.node_health import NodeHealth
from aiosollol.core.scheduling.colocation import Finding
from aiosollol.core.scheduling.cost import TokenRatio
from aiosollol.core.scheduling.planner import Candidate
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import InvalidInput, NodeError

log = logging.getLogger("aiosollol")

_UNKNOWN_RATIO = TokenRatio()


class ClusterState:
    """All nodes, by name. Changes are made here and nowhere else; whoever waits is told.

    A collection of `Node`: iterate over it, ask for ``registry[name]`` or ``name in registry``.

    clock: seconds, as the event loop counts them. max_waiting: requests that may wait for a place.
    hub: where events are told. room: who waits for a place on which node, each at a new_gate.
    not_closed: nodes whose circuit breaker is not closed, by name. stained: those that gave cause
    for complaint lately, see `core.routing.node_health.Standing`.
    facts: what is known of whose address is whose.
    is_searching: whether somebody looks for more nodes at present, so that one that is missed may
    come yet.
    """

    def __init__(
        self,
        nodes: Iterable[NodeLike] = (),
        *,
        clock: Callable[[], float] = anyio.current_time,
        max_waiting: int = 100_000,
    ) -> None:
        self.clock = clock
        self.hub = EventHub()
        self.room = Room(max_waiting)
        self.new_gate: Callable[[], Gate] = anyio.Event
        self.new_scope: Callable[[], Any] = anyio.CancelScope
        self.not_closed: set[str] = set()
        self.stained: set[str] = set()
        self._nodes: dict[str, Node] = {}
        self._ratios: dict[str, TokenRatio] = {}
        self._verdicts: dict[str, dict[frozenset[str], bool]] = {}
        self._view: ClusterView | None = None
        self._machines: dict[str, str] | None = None
        self.facts = NO_FACTS
        self.is_searching = False
        self._changed = anyio.Event()
        self.version = 0
        for node in nodes:
            self.add(node)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __repr__(self) -> str:
        return f"<Registry {', '.join(self._nodes) or 'empty'}>"

    @property
    def view(self) -> ClusterView:
        """Everything that is known now, frozen."""
        if self._view is None:
            states = {name: node.state for name, node in self._nodes.items()}
            self._view = ClusterView(MappingProxyType(states))
        return self._view

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Every node, by its URL."""
        return {node.spec.url: node for node in self._nodes.values()}

    def add(self, node: NodeLike, source: Source | None = None) -> Node:
        """Add a node. One that is already there, by its URL, is left as it is.

        source: how it was found, None if it was named. If it is the same server as another, under
        another address, one of the two stays, and that is returned. Raises InvalidInput if it
        cannot be read, or if its name is taken by another.
        """
        spec = NodeSpec.parse(node)
        for known in self._nodes.values():
            if known.spec.url == spec.url:
                log.warning("node %s is given twice; the first entry counts", spec.url)
                return known
        if spec.name in self._nodes:
            raise InvalidInput(
                f"two nodes are named {spec.name!r}: "
                f"{self._nodes[spec.name].spec.url} and {spec.url}"
            )
        self._nodes[spec.name] = added = Node(spec, self.room, source)
        self._membership_changed()
        if self.hub.is_watched:
            self.tell(NodeChanged(self.clock(), added.name, "added", spec.url))
        kept = self._collapse().get(added.name, added.name)
        return self._nodes[kept]

    def find(self, node: str) -> Node:
        """The node of that name, or at that URL, however written. Raises InvalidInput."""
        if not isinstance(node, str):
            raise InvalidInput(f"a node is named by its name or URL, not {safe_repr(node)}")
        if node in self._nodes:
            return self._nodes[node]
        with contextlib.suppress(InvalidInput):
            url = NodeSpec(node).url
            for known in self._nodes.values():
                if known.spec.url == url:
                    return known
        raise self._no_such(node)

    def _no_such(self, node: str) -> InvalidInput:
        there = ", ".join(self._nodes) or "none"
        return InvalidInput(f"there is no node {safe_repr(node)}; there are {there}")

    def remove(self, name: str) -> Node:
        """Forget a node. Raises InvalidInput if there is none of that name."""
        if name not in self._nodes:
            raise self._no_such(name)
        removed = self._nodes[name]
        self._drop(name)
        self._membership_changed()
        return removed

    def _drop(self, name: str) -> None:
        dropped = self._nodes.pop(name)
        self.not_closed.discard(name)
        self.stained.discard(name)
        dropped.send_away()
        if self.hub.is_watched:
            self.tell(NodeChanged(self.clock(), name, "removed", dropped.spec.url))

    def learn_facts(self, facts: MachineFacts) -> None:
        """Take note of whose address is whose. Two nodes that turn out to be one become one."""
        if facts != self.facts:
            self.facts = facts
            self._membership_changed()
            self._collapse()

    def learn_machine(self, name: str, machine: str) -> None:
        """A node told which machine it is on."""
        machines = {**self.facts.machines, name: machine}
        self.learn_facts(self.facts._replace(machines=machines))

    def _collapse(self) -> dict[str, str]:
        """Keep one node of each server. Returns what was dropped -> what was kept."""
        specs = [node.spec for node in self._nodes.values()]
        dropped = {}
        for duplicate in duplicates(specs, self.facts):
            log.warning(
                "nodes %s and %s are one server; %s is used",
                self._nodes[duplicate.dropped].spec.url,
                self._nodes[duplicate.kept].spec.url,
                duplicate.kept,
            )
            self._drop(duplicate.dropped)
            dropped[duplicate.dropped] = duplicate.kept
        if dropped:
            self._membership_changed()
        return dropped

    def _membership_changed(self) -> None:
        self._machines = None
        self.wake()

    @property
    def machines(self) -> Mapping[str, str]:
        """Node name -> the physical machine it runs on, as far as is known."""
        if self._machines is None:
            specs = [node.spec for node in self._nodes.values()]
            self._machines = machines_of(specs, self.facts)
        return self._machines

    def apply(self, name: str, event: Event) -> None:
        """Take note of what happened to a node, and wake whoever waits for a change."""
        node = self._nodes.get(name)
        if node is None:  # it was removed while the event was on its way
            return
        before, node.state = node.state, advance(node.state, event)
        if node.state is before:
            return
        if isinstance(event, Probed | Described) and event.loaded is not None:
            node.forget_warmed()
        if node.distrusted:
            # Of another version of the model nobody has found out anything yet.
            models, old = node.state.models or {}, before.models or {}
            node.distrusted &= {
                name
                for name in models
                if name not in old or models[name].digest == old[name].digest
            }
        if node.state.is_down and not before.is_down:
            log.warning("node %s is down: %s", name, node.state.error)
            self.tell(NodeChanged(self.clock(), name, "down", node.state.error))
            node.send_away()
        elif before.is_down and not node.state.is_down:
            log.info("node %s is back", name)
            now = node.returned_at = self.clock()
            node.breaker = breakers.advance(node.breaker, breakers.NodeReturned(), now)
            self.tell(NodeChanged(self.clock(), name, "up"))
            self._offer()
        elif before.models is None and node.state.models is not None:
            self._offer()
        if node.state.machine != before.machine:
            self.learn_machine(name, node.state.machine)
        self.wake()

    def tell(self, event: PoolEvent) -> None:
        """Tell whoever watches."""
        if self.hub.is_watched:
            self.hub.tell(event)

    def drain(self, node: Node) -> None:
        """Give `node` no more work."""
        if node.drain():
            self.tell(NodeChanged(self.clock(), node.name, "draining"))
            self.wake()

    def resume(self, node: Node) -> None:
        """Give `node` work again."""
        if node.resume(self.clock()):
            self.tell(NodeChanged(self.clock(), node.name, "resumed"))
            self._offer()
            self.wake()

    def trust(self, node: Node, model: str, *, is_right: bool) -> None:
        """Whether the vectors of `model` on `node` are those of other nodes."""
        if node.trust(model, is_right=is_right):
            self.wake()

    def _offer(self) -> None:
        """There is a node more: let those who wait in a line look around. Their age counts on."""
        if len(self.room):
            for node in self._nodes.values():
                node.send_away()

    # What became of requests.

    def answered(
        self,
        node: Node,
        seconds: float,
        predicted: float,
        now: float,
        *,
        is_well: bool = False,
        is_probe: bool = False,
    ) -> None:
        """A request to `node` was answered. Cheap when that is no news.

        seconds: that it took; predicted: that it was to take. is_well: this answer shows that what
        the node did before is over. is_probe: its breaker was not closed when it was sent.
        """
        node.standing.answered(seconds, predicted, now)
        if is_well:
            node.standing = NodeHealth(now)
        if self.stained or node.standing.is_stained:
            self._restain(node)
        if node.breaker is not breakers.CLOSED:
            self.advance_breaker(node, breakers.CallAnswered(is_probe), now)
        state = node.state
        if (state.failures or state.missed or state.is_down) and self._is_current(node):
            self.apply(node.name, Answered())

    def failed(self, node: Node, error: NodeError, model: str) -> None:
        """A request to `node` for `model` failed."""
        if self._is_current(node):
            self.apply(node.name, Failed(error, model))

    def blame(self, node: Node, now: float) -> None:
        """A request failed, and `node` is to blame."""
        node.standing.failed(now)
        self._restain(node)

    def outrun(self, node: Node, seconds: float, predicted: float, now: float) -> None:
        """Another node answered first, although `node` had `seconds` for it."""
        node.standing.outrun(seconds, predicted, now)
        self._restain(node)

    def _restain(self, node: Node) -> None:
        change = self.stained.add if node.standing.is_stained else self.stained.discard
        change(node.name)

    def advance_breaker(self, node: Node, event: breakers.Event, now: float) -> None:
        """Tell the circuit breaker of `node` of an event, and others of what changes by it."""
        before, after = node.breaker, breakers.advance(node.breaker, event, now)
        if after is before:
            return
        node.breaker = after
        has_changed = before.opens_at != after.opens_at or before.is_probing != after.is_probing
        if has_changed and self._is_current(node):
            change = self.not_closed.discard if after.opens_at is None else self.not_closed.add
            change(node.name)
            self.wake()
        if after.is_probing:
            if not before.passed:
                self.tell(NodeChanged(now, node.name, "breaker half-open"))
        elif before.opens_at is not None and after.opens_at is None:
            node.returned_at = now
            node.standing = NodeHealth(now)  # what was wrong is over, as two probes have shown
            self._restain(node)
            self.tell(NodeChanged(now, node.name, "breaker closed"))
        elif after.ejections != before.ejections:
            node.send_away()
            self.tell(NodeChanged(now, node.name, "breaker open", node.state.error))

    def merge_counters(self, counters: Mapping[str, NodeCounters]) -> None:
        """Count what others counted of requests to the nodes, by name."""
        for name, each in counters.items():
            if name in self._nodes:
                self._nodes[name].counters.merge(each)

    def _is_current(self, node: Node) -> bool:
        """Whether `node` was not removed. Another may have come by its name meanwhile."""
        return self._nodes.get(node.name) is node

    def ratio(self, model: str) -> TokenRatio:
        """Characters per token of `model`, as learned from what servers counted."""
        return self._ratios.get(full_name(model), _UNKNOWN_RATIO)

    def learn_ratio(self, model: str, characters: int, texts: int, tokens: int) -> None:
        """A server counted `tokens` for `texts` texts of `characters` characters in all."""
        self._ratios[full_name(model)] = self.ratio(model).observe(characters, texts, tokens)

    def candidates(self, model: str, nodes: Iterable[Node]) -> list[Candidate]:
        """`nodes` as the planner sees them."""
        machines, now = self.machines, self.clock()
        return [
            Candidate(
                node.name, node.cost(model), machines.get(node.name, node.name), node.ahead(now)
            )
            for node in nodes
        ]

    def verdicts(self, model: str) -> Mapping[frozenset[str], bool]:
        """For pairs of nodes on one machine: whether `model` is faster on both together."""
        return self._verdicts.get(full_name(model), {})

    def remember(self, model: str, finding: Finding) -> None:
        """Two nodes on one machine were compared."""
        log.info("model %s: %s", model, finding)
        pair = frozenset((finding.first, finding.second))
        self._verdicts.setdefault(full_name(model), {})[pair] = finding.is_faster_together

    # How it waits, and for what.

    def wait_by(self, new_gate: Callable[[], Gate], new_scope: Callable[[], Any]) -> None:
        """Let live requests wait at these gates and run in these scopes from now on."""
        self.new_gate, self.new_scope = new_gate, new_scope

    def limit_waiting(self, requests: int) -> None:
        """Let at most so many requests wait for a place."""
        self.room.limit = requests

    def set_searching(self, is_searching: bool) -> None:
        """Whether a search for more nodes is under way."""
        self.is_searching = is_searching
        self.wake()

    async def wait_changed(self, version: int) -> None:
        """Return when anything has changed since `version`."""
        while self.version == version:
            await self._changed.wait()

    def wake(self) -> None:
        """Make everybody look again who waits for a change."""
        self.version += 1
        self._view = None
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
