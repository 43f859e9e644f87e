"""All nodes of a pool, and everything that changes what is known of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import anyio

from aiosollol.core import breaker as breakers
from aiosollol.core.cost import TokenRatio
from aiosollol.core.events import NodeChanged, PoolEvent
from aiosollol.core.health import Answered, Described, Event, Failed, Probed, advance
from aiosollol.core.locality import NO_FACTS, MachineFacts, duplicates, machines_of
from aiosollol.core.node import ClusterView, NodeLike, NodeSpec, full_name
from aiosollol.core.planner import Candidate
from aiosollol.core.trial import Finding
from aiosollol.errors import InvalidInput, NodeError
from aiosollol.events import EventHub
from aiosollol.nodes import Node
from aiosollol.places import Gate, Room

log = logging.getLogger("aiosollol")

_UNKNOWN_RATIO = TokenRatio()


class Registry:
    """All nodes, by name. Changes are made here and nowhere else; whoever waits is told.

    A collection of `Node`: iterate over it, ask for ``registry[name]`` or ``name in registry``.

    clock: seconds, as the event loop counts them. max_waiting: requests that may wait for a place.
    hub: where events are told. room: who waits for a place on which node, each at a new_gate.
    not_closed: nodes whose circuit breaker is not closed, by name. stained: those that gave cause
    for complaint lately, see `core.share.Standing`.
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

    def add(self, node: NodeLike) -> Node:
        """Add a node. One that is already there, by its URL, is left as it is.

        If it is the same server as another, under another address, one of the two stays, and that
        is returned. Raises InvalidInput if it cannot be read, or if its name is taken by another.
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
        self._nodes[spec.name] = added = Node(spec, self.room)
        self._membership_changed()
        if self.hub.is_watched:
            self.tell(NodeChanged(self.clock(), added.name, "added", spec.url))
        kept = self._collapse().get(added.name, added.name)
        return self._nodes[kept]

    def find(self, node: str) -> Node:
        """The node of that name, or at that URL, however written. Raises InvalidInput."""
        if not isinstance(node, str):
            raise InvalidInput(f"a node is named by its name or URL, not {node!r}")
        if node in self._nodes:
            return self._nodes[node]
        with contextlib.suppress(InvalidInput):
            url = NodeSpec(node).url
            for known in self._nodes.values():
                if known.spec.url == url:
                    return known
        raise InvalidInput(
            f"there is no node {node!r}; there are {', '.join(self._nodes) or 'none'}"
        )

    def remove(self, name: str) -> Node:
        """Forget a node. Raises InvalidInput if there is none of that name."""
        if name not in self._nodes:
            raise InvalidInput(f"there is no node {name!r}; there are {', '.join(self._nodes)}")
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
            node.breaker = breakers.advance(node.breaker, breakers.Returned(), now)
            self.tell(NodeChanged(self.clock(), name, "up"))
            self._offer()
        elif before.models is None and node.state.models is not None:
            self._offer()
        if node.state.machine != before.machine:
            machines = {**self.facts.machines, name: node.state.machine}
            self.learn_facts(self.facts._replace(machines=machines))
        self.wake()

    def tell(self, event: PoolEvent) -> None:
        """Tell whoever watches."""
        if self.hub.is_watched:
            self.hub.tell(event)

    def drained(self, node: Node) -> None:
        """`node` is given no more work."""
        self.tell(NodeChanged(self.clock(), node.name, "draining"))
        self.wake()

    def resumed(self, node: Node) -> None:
        """`node` is given work again."""
        self.tell(NodeChanged(self.clock(), node.name, "resumed"))
        self._offer()
        self.wake()

    def _offer(self) -> None:
        """There is a node more: let those who wait in a line look around. Their age counts on."""
        if len(self.room):
            for node in self._nodes.values():
                node.send_away()

    def breaker_changed(self, node: Node) -> None:
        """The circuit breaker of `node` was opened, probed or closed."""
        if not self._is_current(node):
            return
        if node.breaker.opens_at is None:
            self.not_closed.discard(node.name)
        else:
            self.not_closed.add(node.name)
        self.wake()

    def answered(self, node: Node) -> None:
        """A request to `node` was answered. Cheap when that is no news."""
        state = node.state
        if (state.failures or state.missed or state.is_down) and self._is_current(node):
            self.apply(node.name, Answered())

    def failed(self, node: Node, error: NodeError, model: str) -> None:
        """A request to `node` for `model` failed."""
        if self._is_current(node):
            self.apply(node.name, Failed(error, model))

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
