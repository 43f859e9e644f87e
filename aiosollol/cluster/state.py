"""The cluster state: all nodes of a pool, and every change to them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import anyio

from aiosollol.cluster.changes import Changes
from aiosollol.cluster.event_hub import EventHub
from aiosollol.cluster.model_facts import ModelFacts
from aiosollol.cluster.node import Node
from aiosollol.cluster.slots import Gate, Room
from aiosollol.core.events import NodeChanged, PoolEvent
from aiosollol.core.locality import NO_FACTS, MachineFacts, duplicates, machines_of
from aiosollol.core.networks import Source
from aiosollol.core.node import ClusterView, NodeLike, NodeSpec, NodeState
from aiosollol.core.node_transitions import (
    Answered,
    Described,
    Event,
    Failed,
    Probed,
    advance,
    keeps_vectors,
)
from aiosollol.core.redaction import safe_repr
from aiosollol.core.routing import circuit_breaker as breakers
from aiosollol.core.routing.node_health import NodeHealth
from aiosollol.core.routing.retry import Failure
from aiosollol.core.scheduling.planner import Candidate
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import InvalidInput, NodeError

log = logging.getLogger("aiosollol")


class ClusterState(Changes, ModelFacts):
    """All nodes, by name. Changes wake the tasks that wait for one.

    A collection of `Node`: supports iteration, ``registry[name]`` and ``name in registry``.

    clock: the event loop's time, in seconds.
    hub: publishes events.
    max_waiting: maximum number of requests that wait for a slot.
    room: the requests that wait for a slot, by node.
    new_gate, new_scope: make the gates at which live requests wait, and the scopes they run in.
    not_closed: names of the nodes whose circuit breaker is not closed.
    stained: names of the nodes with recent problems, see `core.routing.node_health.NodeHealth`.
    facts: known addresses and machine ids.
    is_searching: whether discovery is running, so that more nodes may appear.
    """

    def __init__(
        self,
        nodes: Iterable[NodeLike] = (),
        *,
        clock: Callable[[], float] = anyio.current_time,
        max_waiting: int = 100_000,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.hub = EventHub()
        self.room = Room(max_waiting)
        self.new_gate: Callable[[], Gate] = anyio.Event
        self.new_scope: Callable[[], Any] = anyio.CancelScope
        self.not_closed: set[str] = set()
        self.stained: set[str] = set()
        self._nodes: dict[str, Node] = {}
        self._view: tuple[int, ClusterView | None] = 0, None
        self._machines: dict[str, str] | None = None
        self.facts = NO_FACTS
        self.is_searching = False
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
        return f"<ClusterState {', '.join(self._nodes) or 'empty'}>"

    @property
    def view(self) -> ClusterView:
        """A frozen snapshot of all nodes."""
        version, view = self._view
        if view is None or version != self.version:
            states = {name: node.state for name, node in self._nodes.items()}
            view = ClusterView(MappingProxyType(states))
            self._view = self.version, view
        return view

    @property
    def nodes(self) -> Mapping[str, Node]:
        """All nodes, by URL."""
        return {node.spec.url: node for node in self._nodes.values()}

    def add(self, node: NodeLike, source: Source | None = None) -> Node:
        """Add a node and return it. A node with the same URL is left unchanged and returned.

        source: how it was found; None if it was configured. If it is the same server as another
        node, under another address, only one is kept, and returned. Raises InvalidInput if it is
        invalid, or if another node has its name.
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
        self._nodes[spec.name] = added = Node(spec, self.room, source, self.shared)
        self._membership_changed()
        if self.hub.is_watched:
            self.tell(NodeChanged(self.clock(), added.name, "added", spec.url))
        kept = self._collapse().get(added.name, added.name)
        return self._nodes[kept]

    def find(self, node: str) -> Node:
        """The node with that name or URL, in any spelling. Raises InvalidInput."""
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
        """Remove a node and return it. Raises InvalidInput if there is none with that name."""
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
        """Update the known addresses and machine ids, and merge nodes that are the same server."""
        if facts != self.facts:
            self.facts = facts
            self._membership_changed()
            self._collapse()

    def learn_machine(self, name: str, machine: str) -> None:
        """Record the machine id that a node reported."""
        machines = {**self.facts.machines, name: machine}
        self.learn_facts(self.facts._replace(machines=machines))

    def _collapse(self) -> dict[str, str]:
        """Keep one node per server. Returns kept nodes by dropped ones."""
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
        """The physical machine of each node, by node name, as far as is known."""
        if self._machines is None:
            specs = [node.spec for node in self._nodes.values()]
            self._machines = machines_of(specs, self.facts)
        return self._machines

    def apply(self, name: str, event: Event) -> None:
        """Apply an event to a node's state, and wake the tasks that wait for a change."""
        node = self._nodes.get(name)
        if node is None:  # it was removed while the event was on its way
            return
        before, node.state = node.state, advance(node.state, event)
        if node.state is before:
            return
        if isinstance(event, Probed | Described) and event.loaded is not None:
            node.forget_warmed()
        if node.distrusted or node.embeds:
            # A changed version of the model or of the server has not been compared yet.
            self._forget_changed(node, before)
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
        """Publish an event."""
        if self.hub.is_watched:
            self.hub.tell(event)

    def drain(self, node: Node) -> None:
        """Send no more work to `node`."""
        if node.drain():
            self.tell(NodeChanged(self.clock(), node.name, "draining"))
            self.wake()

    def resume(self, node: Node) -> None:
        """Send work to `node` again."""
        if node.resume(self.clock()):
            self.tell(NodeChanged(self.clock(), node.name, "resumed"))
            self._offer()
            self.wake()

    def trust(self, node: Node, model: str, *, is_right: bool, detail: str = "") -> None:
        """Set whether the vectors of `model` on `node` match those of other nodes.

        detail: how they differ, for the event.
        """
        if node.trust(model, is_right=is_right):
            self._tell_trust(node, model, detail, is_right=is_right)
            self.wake()

    def _forget_changed(self, node: Node, before: NodeState) -> None:
        names = [*node.distrusted, *(name for name in node.embeds if name not in node.distrusted)]
        changed = [name for name in names if not keeps_vectors(before, node.state, name)]
        for name in node.distrusted.intersection(changed):
            self._tell_trust(node, name, "the model or the server has changed", is_right=True)
        node.forget_changed(changed)

    def _tell_trust(self, node: Node, model: str, detail: str, *, is_right: bool) -> None:
        if self.hub.is_watched:
            change = "vectors trusted" if is_right else "vectors differ"
            about = f"{model}: {detail}" if detail else model
            self.tell(NodeChanged(self.clock(), node.name, change, about))

    def _offer(self) -> None:
        """Reroute the waiting requests to a new node. They keep their waiting time."""
        if len(self.room):
            for node in self._nodes.values():
                node.send_away()

    # Results of requests.

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
        """Record that `node` answered a request. Cheap if nothing changes.

        seconds, predicted: actual and predicted duration.
        is_well: the answer shows that earlier problems of the node are over.
        is_probe: the breaker was not closed when the request was sent.
        """
        node.standing.answered(seconds, predicted, now)
        if node.has_news:
            node.take_news()
            self.note_use()
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
        """Record that a request to `node` for `model` failed."""
        if self._is_current(node):
            self.apply(node.name, Failed(error, model))

    def blame(self, node: Node, now: float) -> None:
        """Record a failed request that is the fault of `node`."""
        node.standing.failed(now)
        self._restain(node)

    def refused_wrongly(self, node: Node, now: float) -> None:
        """Record that another node answered what `node` had refused as invalid."""
        self.blame(node, now)
        # The refused request may have been a probe, which ended without a result.
        is_probe = node.breaker.opens_at is not None and node.breaker.admits(now)
        self.advance_breaker(node, breakers.CallFailed(Failure.ANSWER, is_probe), now)

    def outrun(self, node: Node, seconds: float, predicted: float, now: float) -> None:
        """Record that another node answered first, although `node` had `seconds` for it."""
        node.standing.outrun(seconds, predicted, now)
        self._restain(node)

    def _restain(self, node: Node) -> None:
        change = self.stained.add if node.standing.is_stained else self.stained.discard
        change(node.name)

    def advance_breaker(self, node: Node, event: breakers.Event, now: float) -> None:
        """Advance the circuit breaker of `node` by an event, and publish the change."""
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
            node.standing = NodeHealth(now)  # two answered probes show that it has recovered
            self._restain(node)
            self.tell(NodeChanged(now, node.name, "breaker closed"))
        elif after.ejections != before.ejections:
            node.send_away()
            self.tell(NodeChanged(now, node.name, "breaker open", node.state.error))

    def merge_counters(self, counters: Mapping[str, NodeCounters]) -> None:
        """Add others' request counters to the nodes, by name."""
        for name, each in counters.items():
            if name in self._nodes:
                self._nodes[name].counters.merge(each)

    def _is_current(self, node: Node) -> bool:
        """Whether `node` is still in use: it may have been removed, or replaced by name."""
        return self._nodes.get(node.name) is node

    def candidates(self, model: str, nodes: Iterable[Node]) -> list[Candidate]:
        """`nodes` as the planner sees them."""
        machines, now = self.machines, self.clock()
        return [
            Candidate(
                node.name, node.cost(model), machines.get(node.name, node.name), node.ahead(now)
            )
            for node in nodes
        ]

    # Waiting.

    def wait_by(self, new_gate: Callable[[], Gate], new_scope: Callable[[], Any]) -> None:
        """Set the gates that live requests wait at, and the scopes they run in."""
        self.new_gate, self.new_scope = new_gate, new_scope

    def limit_waiting(self, requests: int) -> None:
        """Set the maximum number of requests that wait for a slot."""
        self.room.limit = requests

    def set_searching(self, is_searching: bool) -> None:
        """Set whether discovery is running."""
        self.is_searching = is_searching
        self.wake()
