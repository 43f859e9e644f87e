"""The nodes of a pool: what is known of each, and what it is doing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import anyio

from aiosollol.core.cost import Cost, TokenRatio
from aiosollol.core.discovered import Source
from aiosollol.core.health import Answered, Event, Failed, advance
from aiosollol.core.locality import NO_FACTS, MachineFacts, duplicates, machines_of
from aiosollol.core.node import ClusterView, NodeLike, NodeSpec, NodeState, full_name
from aiosollol.core.planner import Candidate
from aiosollol.core.stats import NodeCounters, NodeStats
from aiosollol.core.trial import Finding
from aiosollol.errors import BadRequest, InvalidInput, ModelMissing, NodeError

log = logging.getLogger("aiosollol")

_UNKNOWN_RATIO = TokenRatio()

BATCH_WINDOW = 2
"""Chunks under way on a node at once: one is computed while the next is on the wire."""


class Node:
    """One node in use. `state` is what is known of it; everything else is what it is doing.

    in_flight: requests of this process under way on it. slots: places for chunks of batches.
    costs: learned, by full model name.
    speaks_base64: whether it answers vectors in base64, None until it was asked.
    source: how it was found, None if somebody named it.
    """

    __slots__ = (
        "costs",
        "counters",
        "disturbed_at",
        "in_flight",
        "last_done",
        "limit",
        "slots",
        "source",
        "speaks_base64",
        "state",
    )

    def __init__(self, spec: NodeSpec) -> None:
        self.state = NodeState(spec)
        self.counters = NodeCounters()
        self.costs: dict[str, Cost] = {}
        self.speaks_base64: bool | None = None
        self.source: Source | None = None
        self.in_flight = 0
        self.last_done = 0.0
        self.disturbed_at = 0.0
        self.limit: anyio.Semaphore | None = None
        if spec.max_concurrency is not None:
            self.limit = anyio.Semaphore(spec.max_concurrency, fast_acquire=True)
        self.slots = anyio.Semaphore(self.window, fast_acquire=True)

    def __repr__(self) -> str:
        condition = "down" if self.state.is_down else "up" if self.is_known else "unknown"
        return f"<Node {self.name} {condition}, {self.in_flight} in flight>"

    @property
    def spec(self) -> NodeSpec:
        return self.state.spec

    @property
    def name(self) -> str:
        return self.state.spec.name

    @property
    def is_known(self) -> bool:
        """Whether the node has answered, or failed to, at least once."""
        return self.state.models is not None or self.state.is_down

    @property
    def window(self) -> int:
        """How many chunks of a batch may be under way on it."""
        return min(BATCH_WINDOW, self.spec.max_concurrency or BATCH_WINDOW)

    @property
    def latency(self) -> float:
        """Seconds that it usually takes to answer; 0 before its first answer."""
        return self.counters.latency

    @property
    def ahead(self) -> float:
        """Seconds that it will still take for what is in flight: about what it usually takes."""
        return self.latency if self.in_flight else 0.0

    def cost(self, model: str) -> Cost:
        """What `model` costs here, as far as is known."""
        return self.costs.get(full_name(model)) or Cost.unknown(gpu=self.state.has_gpu())

    async def enter(self) -> None:
        """Begin a request, within the limit that the user set. `leave` must follow."""
        if self.limit is not None:
            await self.limit.acquire()
        self.in_flight += 1

    def leave(self) -> None:
        """End a request, however it went."""
        self.in_flight -= 1
        if self.limit is not None:
            self.limit.release()

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
        return cost

    def succeed(self, sent_at: float, now: float) -> None:
        """A request was answered."""
        self.counters.success(now - sent_at)
        self.last_done = now

    def fail(self, error: NodeError, now: float) -> None:
        """A request failed. What the caller did wrong is not held against the node."""
        if isinstance(error, BadRequest | ModelMissing):
            self.counters.rejected += 1
        else:
            self.counters.failed += 1
        self.disturbed_at = now

    def cancel(self, now: float) -> None:
        """A request was given up by us."""
        self.counters.cancelled += 1
        self.disturbed_at = now

    def stats(self) -> NodeStats:
        state, spec = self.state, self.state.spec
        return NodeStats(
            spec.key,
            spec.name,
            spec.url,
            spec.priority,
            not state.is_down,
            self.in_flight,
            self.counters,
            state.error,
        )


class Registry:
    """All nodes, by name. Changes are made here and nowhere else; whoever waits is told.

    A collection of `Node`: iterate over it, ask for ``registry[name]`` or ``name in registry``.

    clock: seconds, as the event loop counts them. facts: what is known of whose address is whose.
    is_searching: whether somebody looks for more nodes at present, so that one that is missed may
    come yet.
    """

    def __init__(
        self,
        nodes: Iterable[NodeLike] = (),
        *,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.clock = clock
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
        self._nodes[spec.name] = added = Node(spec)
        self._membership_changed()
        kept = self._collapse().get(added.name, added.name)
        return self._nodes[kept]

    def remove(self, name: str) -> Node:
        """Forget a node. Raises InvalidInput if there is none of that name."""
        if name not in self._nodes:
            raise InvalidInput(f"there is no node {name!r}; there are {', '.join(self._nodes)}")
        removed = self._nodes.pop(name)
        self._membership_changed()
        return removed

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
            del self._nodes[duplicate.dropped]
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
        if node.state.is_down and not before.is_down:
            log.warning("node %s is down: %s", name, node.state.error)
        elif before.is_down and not node.state.is_down:
            log.info("node %s is back", name)
        if node.state.machine != before.machine:
            machines = {**self.facts.machines, name: node.state.machine}
            self.learn_facts(self.facts._replace(machines=machines))
        self.wake()

    def answered(self, node: Node) -> None:
        """A request to `node` was answered. Cheap when that is no news."""
        if node.state.failures or node.state.is_down:
            self.apply(node.name, Answered())

    def failed(self, node: Node, error: NodeError, model: str) -> None:
        """A request to `node` for `model` failed."""
        self.apply(node.name, Failed(error, model))

    def ratio(self, model: str) -> TokenRatio:
        """Characters per token of `model`, as learned from what servers counted."""
        return self._ratios.get(full_name(model), _UNKNOWN_RATIO)

    def learn_ratio(self, model: str, characters: int, texts: int, tokens: int) -> None:
        """A server counted `tokens` for `texts` texts of `characters` characters in all."""
        self._ratios[full_name(model)] = self.ratio(model).observe(characters, texts, tokens)

    def candidates(self, model: str, nodes: Iterable[Node]) -> list[Candidate]:
        """`nodes` as the planner sees them."""
        machines = self.machines
        return [
            Candidate(node.name, node.cost(model), machines.get(node.name, node.name), node.ahead)
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
