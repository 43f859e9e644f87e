"""A simulated cluster: drives `core.scheduling.state_machine` with a simulated clock.

Each node computes one request after another, as Ollama does with an embedding model, with an
overhead per request, a cost per item and a cost per token. It can slow down, die and come back at
given times. The scheduler gets the same input as from the executor, and learns in the same way.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from aiosollol.core.routing.retry import Failure
from aiosollol.core.scheduling.batch_nodes import Chunk
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.dispatcher import (
    Cancel,
    Instruction,
    ScheduleOptions,
    Send,
)
from aiosollol.core.scheduling.state_machine import BatchState
from aiosollol.errors import BadRequest, NodeError, NodeUnreachable, RunnerFailed

PATIENCE = 60.0
"""Seconds after which a batch is given up if no node answers."""


@dataclass(slots=True)
class SimNode:
    """A node's true costs in seconds, and its fate: pairs (time, what happens).

    What happens is a factor by which it becomes slower, or "die", or "return", or "sick": from
    then on every request fails. noise: each request takes up to this fraction more or less.
    """

    name: str
    overhead: float = 0.0015
    per_item: float = 0.0
    per_token: float = 0.0
    noise: float = 0.0
    window: int = 2
    fate: Sequence[tuple[float, float | str]] = ()

    def seconds(self, items: int, tokens: float) -> float:
        """What a request for so many items and tokens costs while nothing has happened."""
        return self.overhead + items * self.per_item + tokens * self.per_token


@dataclass(slots=True)
class Outcome:
    """How a simulated batch went. `costs` is what was learned, to start the next batch with.

    decisions: instructions, and events that led to none. deciding: seconds of processor time that
    they took.
    """

    seconds: float
    state: BatchState
    costs: dict[str, Cost]
    decisions: int = 0
    deciding: float = 0.0
    sent_items: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    most_in_flight: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Server:
    node: SimNode
    queue: deque[tuple[Chunk, float]] = field(default_factory=deque)
    current: tuple[Chunk, float] | None = None
    turn: int = 0
    slowness: float = 1.0
    is_dead: bool = False
    is_sick: bool = False
    last_done: float = 0.0
    began: float = 0.0


class Simulation:
    """One batch over simulated nodes. Make one, `run` it once.

    tokens: of each item. costs: learned before, by node name; nothing for a cold start.
    wire: seconds between client and node, each way. poison: items that no node can embed.
    is_counting: whether `Outcome.answered` says how often each item was answered.
    """

    def __init__(
        self,
        nodes: Sequence[SimNode],
        tokens: Sequence[float],
        *,
        costs: dict[str, Cost] | None = None,
        wire: float = 0.0005,
        poison: Set[int] = frozenset(),
        options: ScheduleOptions | None = None,
        seed: int = 0,
        is_counting: bool = True,
    ) -> None:
        self._wire = wire
        self._poison = frozenset(poison)
        self._is_counting = is_counting
        self._rng = random.Random(seed)
        self._servers = {node.name: _Server(node) for node in nodes}
        self._events: list[tuple[float, int, str, object]] = []
        self._serial = 0
        self._now = 0.0
        self.outcome = Outcome(0.0, BatchState(tokens, options), dict(costs or {}))

    def run(self, *, max_events: int = 10_000_000) -> Outcome:
        """Play until every item is settled. Raises RuntimeError if the scheduler gets stuck."""
        state = self.outcome.state
        for server in self._servers.values():
            for moment, fate in server.node.fate:
                self._at(moment, server.node.name, fate)
            self._join(server)
        self._decide(state.start, self._now)
        for _ in range(max_events):
            if state.is_finished:
                self.outcome.seconds = self._now
                return self.outcome
            began = time.thread_time()
            tick = state.next_tick(self._now)
            self.outcome.deciding += time.thread_time() - began
            silent_since = state.silent_since
            if silent_since is not None and not self._may_return():
                give_up_at = silent_since + PATIENCE
                if self._now >= give_up_at or (tick is None and not self._events):
                    error = NodeUnreachable("all", "no node answers")
                    self._decide(state.abandon, error, self._now)
                    continue
            if self._events and (tick is None or self._events[0][0] <= tick):
                self._now, _, name, what = heapq.heappop(self._events)
                self._happen(self._servers[name], what)
            elif tick is not None:
                self._now = tick
                self._decide(state.tick, self._now)
            else:
                raise RuntimeError(f"stuck at {self._now}: {state.done_count} items done")
        raise RuntimeError(f"no end after {max_events} events")

    def _may_return(self) -> bool:
        return any(what == "return" for _, _, _, what in self._events)

    def _decide(
        self, event: Callable[..., Sequence[Instruction]], *args: object, **options: object
    ) -> None:
        began = time.thread_time()
        instructions = event(*args, **options)
        self.outcome.deciding += time.thread_time() - began
        self.outcome.decisions += max(1, len(instructions))
        for instruction in instructions:
            match instruction:
                case Send(chunk):
                    self._send(chunk)
                case Cancel(chunk):
                    self._cancel(chunk)

    def _at(self, at: float, name: str, what: object) -> None:
        self._serial += 1
        heapq.heappush(self._events, (at, self._serial, name, what))

    def _join(self, server: _Server) -> None:
        cost = self.outcome.costs.get(server.node.name) or Cost.unknown()
        self._decide(
            self.outcome.state.node_up,
            server.node.name,
            cost,
            self._now,
            window=server.node.window,
        )

    # What happens at the nodes.

    def _send(self, chunk: Chunk) -> None:
        server = self._servers[chunk.node]
        self.outcome.state.began(chunk, self._now)
        self.outcome.sent_items += len(chunk.items)
        if server.is_dead:
            self._at(self._now + self._wire, chunk.node, (chunk, 0))
            return
        server.queue.append((chunk, self._now))
        under_way = len(server.queue) + (server.current is not None)
        most = self.outcome.most_in_flight
        most[chunk.node] = max(most[chunk.node], under_way)
        self._begin(server)

    def _cancel(self, chunk: Chunk) -> None:
        server = self._servers[chunk.node]
        if server.current is not None and server.current[0].id == chunk.id:
            server.current = None
            server.turn += 1
            server.last_done = self._now
            self._begin(server)
        else:
            server.queue = deque(entry for entry in server.queue if entry[0].id != chunk.id)

    def _begin(self, server: _Server) -> None:
        if server.current is not None or not server.queue:
            return
        server.current = chunk, sent_at = server.queue.popleft()
        server.turn += 1
        server.began = max(self._now, sent_at + self._wire)
        seconds = server.node.seconds(len(chunk.items), chunk.tokens)
        noise = 1 + self._rng.uniform(-server.node.noise, server.node.noise)
        finish = server.began + seconds * noise * server.slowness
        self._at(finish + self._wire, server.node.name, (chunk, server.turn))

    def _happen(self, server: _Server, what: object) -> None:
        if isinstance(what, tuple):
            self._answer(server, *what)
        elif what == "die":
            self._die(server)
        elif what == "return":
            server.is_dead = server.is_sick = False
            self._join(server)
        elif what == "sick":
            server.is_sick = True
        elif isinstance(what, float | int):
            self._slow_down(server, what)

    def _slow_down(self, server: _Server, factor: float) -> None:
        """What is left of the current request takes `factor` times as long, and so do the next."""
        old, server.slowness = server.slowness, server.slowness * factor
        if server.current is None:
            return
        chunk, _ = server.current
        due = next(
            at
            for at, _, name, what in self._events
            if name == server.node.name and what == (chunk, server.turn)
        )
        server.turn += 1
        left = max(0.0, due - self._now) * server.slowness / old
        self._at(self._now + left, server.node.name, (chunk, server.turn))

    def _die(self, server: _Server) -> None:
        server.is_dead = True
        lost = [entry[0] for entry in ([server.current] if server.current else [])]
        lost += [chunk for chunk, _ in server.queue]
        server.current = None
        server.turn += 1
        server.queue.clear()
        for chunk in lost:
            self._fail(chunk, Failure.NODE, NodeUnreachable(chunk.node, "died"))

    def _answer(self, server: _Server, chunk: Chunk, turn: int) -> None:
        if turn == 0:
            self._fail(chunk, Failure.NODE, NodeUnreachable(chunk.node, "refused"))
            return
        if turn != server.turn or server.current is None:
            return
        _, sent_at = server.current
        server.current = None
        seconds = self._now - max(sent_at, server.last_done)
        server.last_done = self._now
        self._begin(server)
        name = server.node.name
        if server.is_sick:
            self._fail(chunk, Failure.ANSWER, RunnerFailed(name, 500, "sick"))
            return
        if self._poison and not self._poison.isdisjoint(chunk.items):
            self._fail(chunk, Failure.INPUT, BadRequest(name, 400, "poison"))
            return
        cost = self.outcome.costs.get(name) or Cost.unknown()
        self.outcome.costs[name] = cost.observe(chunk.tokens, seconds)
        if self._is_counting:
            self.outcome.answered.update(chunk.items)
        self._decide(self.outcome.state.done, chunk, self._now, self.outcome.costs[name])

    def _fail(self, chunk: Chunk, failure: Failure, error: NodeError) -> None:
        self._decide(self.outcome.state.failed, chunk, self._now, failure, error)


def lower_bound(nodes: Sequence[SimNode], tokens: Sequence[float]) -> float:
    """Seconds below which no scheduler can be: all work over the sum of all rates.

    Requests are taken to have no overhead and the wire no length. What happens to the nodes is
    known beforehand, and nothing of what they did is lost; infinity if they are never done.
    """
    count, total = len(tokens), sum(tokens)
    full = [1.0 / (node.per_item * count + node.per_token * total) for node in nodes]
    rates = list(full)
    fates = [(at, index, what) for index, node in enumerate(nodes) for at, what in node.fate]
    now, left = 0.0, 1.0
    for at, index, what in sorted(fates, key=lambda fate: fate[0]):
        rate = sum(rates)
        if rate * (at - now) >= left:
            break
        left -= rate * (at - now)
        now = at
        if isinstance(what, str):
            rates[index] = full[index] if what == "return" else 0.0
        else:
            rates[index] /= what
    rate = sum(rates)
    return now + left / rate if rate else float("inf")
