"""One batch as a state machine: events in, instructions out.

The executor tells what happened (`node_up`, `done`, `failed`, `node_lost`, `tick`) and carries
out what comes back (`Send`, `Cancel`) until `is_finished`. Nothing here waits or reads a clock.

Who gets what is decided as late as possible. Whenever a node has a free place, the *horizon* is
reckoned: the earliest time at which all waiting work can be done by all nodes together. What the
node can do until then is its share, and it gets a part of that, smaller as the end comes near. A
node whose share is less than one item gets none, unless no other would finish that item sooner.

When nothing is waiting, idle nodes get copies of what the others are late with, if everybody
together would be done sooner that way. The first answer counts, the other is cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from aiosollol.core.cost import Cost
from aiosollol.core.fleet import Chunk, Fleet, Flight, Tally, Worker
from aiosollol.core.queue import WorkQueue
from aiosollol.core.resilience import Failure
from aiosollol.errors import SollolError

_PROBE_TOKENS = 200.0
_PROBE_ITEMS = 16
_EXTRAPOLATION = 8.0
"""How far beyond the largest answer seen a prediction is trusted."""
_SHARE_DIVISOR = 3.0
"""A chunk is at most this fraction of what a node will still do, so that plans can change."""
_FLOOR_OVERHEADS = 8.0
"""Chunks are not cut below this many overheads: then requests would cost more than they balance."""
_MIN_CHUNK_SECONDS = 0.01
_COPY_GAIN = 0.9
"""A copy must be expected within this fraction of the time that the original still needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """How a batch is cut. Durations are seconds.

    chunk_seconds: how long a chunk should take. max_items, max_tokens: its upper bounds.
    max_attempts: how often an item may be in a request that failed before it is given up.
    """

    chunk_seconds: float = 0.5
    max_items: int = 256
    max_tokens: float = 65_536.0
    max_attempts: int = 3
    busy_pause: float = 0.5
    max_busy: int = 8


@dataclass(frozen=True, slots=True)
class Send:
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Cancel:
    chunk: Chunk


Instruction: TypeAlias = Send | Cancel


class BatchState:
    """A batch of items with known token counts, over nodes that come and go."""

    def __init__(self, tokens: Sequence[float], options: ScheduleOptions | None = None) -> None:
        self._tokens = tokens
        self._options = options or ScheduleOptions()
        self._queue = WorkQueue(tokens)
        self._fleet = Fleet(self._options.chunk_seconds)
        self._flights: dict[int, Flight] = {}
        self._settled = bytearray(len(tokens))
        self._copied = bytearray(len(tokens))
        self._open = len(tokens)
        self._next_id = 0
        self._attempts: dict[int, int] = {}
        self.errors: dict[int, SollolError] = {}
        self.last_errors: dict[str, SollolError] = {}
        self.tallies: dict[str, Tally] = {}
        self.splits = 0
        self._is_started = False
        # Nodes with a free place for which there was nothing to do. They are asked again only
        # when something happened that may change that: `_is_stirred`.
        self._idle: dict[str, Worker] = {}
        self._is_stirred = False

    # What the executor asks.

    @property
    def is_finished(self) -> bool:
        """Every item has an answer or an error, and nothing is under way."""
        return self._open == 0 and not self._flights

    @property
    def done_count(self) -> int:
        """Items that are settled, by an answer or an error."""
        return len(self._tokens) - self._open

    @property
    def retries(self) -> int:
        return sum(tally.retries for tally in self.tallies.values())

    @property
    def copies(self) -> int:
        return sum(tally.copies for tally in self.tallies.values())

    @property
    def is_stuck(self) -> bool:
        """Items are open, but every node is lost."""
        return bool(self._open) and not self._flights and not self._fleet.any_active()

    def has_node(self, name: str) -> bool:
        """Whether `name` takes part, or stands by, and is not lost."""
        node = self._fleet.get(name)
        return node is not None and not node.is_lost

    def next_tick(self, now: float) -> float | None:
        """When `tick` should be called if nothing happens before; None: never."""
        if not self._open:
            return None
        if not self._idle:
            return None
        waits = [node.retry_at for node in self._idle.values() if node.retry_at > now]
        if self._flights and len(waits) < len(self._idle):
            oldest = next(iter(self._flights.values()))
            waits.append(now + max(_MIN_CHUNK_SECONDS, (now - oldest.sent_at) / 4))
        return min(waits, default=None)

    # Events.

    def node_up(
        self,
        name: str,
        cost: Cost,
        now: float,
        *,
        window: int = 2,
        ahead: float = 0.0,
        standby: bool = False,
    ) -> list[Instruction]:
        """A node joins, or comes back. `ahead`: seconds of other work that it has to do first.

        A `standby` node gets work only when all others are lost.
        """
        known = self._fleet.get(name)
        if known is not None and not known.is_lost:
            return []
        tally = self.tallies.setdefault(name, Tally())
        node = Worker(name, cost, window, now + ahead, standby, tally)
        if known is not None:
            node.flights = known.flights
            node.busy_since = known.busy_since
        self._idle[name] = node
        self._fleet.put(node)
        self._is_stirred = True
        return self._dispatch(now)

    def start(self, now: float) -> list[Instruction]:
        """Hand out the first chunks, once the nodes known at the start have been announced."""
        self._is_started = True
        return self._dispatch(now)

    def node_lost(
        self, name: str, now: float, error: SollolError | None = None
    ) -> list[Instruction]:
        """A node must get no more work. What it is working on may still be answered."""
        node = self._fleet.get(name)
        if node is None or node.is_lost:
            return []
        self._lose(node, error)
        self._is_stirred = True
        return self._dispatch(now)

    def tick(self, now: float) -> list[Instruction]:
        """Time has passed: pauses may be over, chunks may be late."""
        self._is_stirred = True
        return self._dispatch(now)

    def done(self, chunk: Chunk, now: float, cost: Cost) -> list[Instruction]:
        """A chunk was answered. `cost` is what the node is known to cost by now."""
        flight = self._land(chunk, now)
        if flight is None:
            return []
        node = self._fleet[chunk.node]
        node.failures = node.busy_answers = 0
        node.cost = cost
        won = [item for item in chunk.items if not self._settled[item]]
        for item in won:
            self._settled[item] = 1
        self._open -= len(won)
        node.tally.items += len(won)
        node.tally.tokens += chunk.tokens
        if not won:
            node.tally.wasted += now - flight.sent_at
        node.foresee(now)
        self._fleet.update(node)
        instructions: list[Instruction] = []
        if chunk.is_copy or flight.is_copied:
            self._queue.discard(lambda item: self._settled[item] == 1)
        if chunk.is_copy or flight.is_copied or not self._open:
            instructions = self._cancel_settled(now)
        return instructions + self._dispatch(now, node)

    def failed(
        self, chunk: Chunk, now: float, failure: Failure, error: SollolError
    ) -> list[Instruction]:
        """A chunk was not answered. Its items are tried again, alone if they look guilty."""
        if self._land(chunk, now) is None:
            return []
        node = self._fleet[chunk.node]
        node.foresee(now)
        self.last_errors[node.name] = error
        items = [item for item in chunk.items if not self._settled[item]]
        if failure is Failure.INPUT:
            self._split_or_give_up(items, error, 0, node.name)
        else:
            node.tally.retries += 1
            self._punish(node, failure, error, now)
            self._retry(items, failure, error, node.name)
        self._fleet.update(node)
        self._is_stirred = True
        return self._cancel_settled(now) + self._dispatch(now)

    def abandon(self, error: SollolError, now: float) -> list[Instruction]:
        """Give every open item `error` and cancel what is under way."""
        for item in range(len(self._tokens)):
            if not self._settled[item]:
                self._give_up(item, error)
        self._queue.drain()
        return self._cancel_settled(now)

    # Failures.

    def _punish(self, node: Worker, failure: Failure, error: SollolError, now: float) -> None:
        if failure is Failure.BUSY:
            node.busy_answers += 1
            node.retry_at = now + self._options.busy_pause * 2 ** (node.busy_answers - 1)
            if node.busy_answers >= self._options.max_busy:
                self._lose(node, error)
            return
        node.failures += 1
        if failure in (Failure.NODE, Failure.MODEL) or node.failures >= 2:
            self._lose(node, error)

    def _retry(
        self, items: Sequence[int], failure: Failure, error: SollolError, culprit: str
    ) -> None:
        if not items:
            return
        if failure is not Failure.ANSWER:
            self._queue.put_back(items)
            return
        attempts = max(self._attempts.get(item, 0) for item in items) + 1
        for item in items:
            self._attempts[item] = attempts
        if attempts < 2:
            self._queue.put_back(items, avoid=culprit)
        else:
            self._split_or_give_up(items, error, self._options.max_attempts, culprit)

    def _split_or_give_up(
        self, items: Sequence[int], error: SollolError, allowed: int, culprit: str
    ) -> None:
        """Halve what failed until the guilty item is alone, and allow that no more attempts."""
        if len(items) > 1:
            self.splits += 1
            middle = len(items) // 2
            self._queue.put_back(items[:middle], avoid=culprit)
            self._queue.put_back(items[middle:], avoid=culprit)
        elif items and self._attempts.get(items[0], 0) >= allowed:
            self._give_up(items[0], error)
        elif items:
            self._queue.put_back(items, avoid=culprit)

    def _give_up(self, item: int, error: SollolError) -> None:
        self._settled[item] = 1
        self._open -= 1
        self.errors[item] = error

    def _lose(self, node: Worker, error: SollolError | None) -> None:
        if error is not None:
            self.last_errors[node.name] = error
        if node.is_lost:
            return
        node.is_lost = True
        self._idle.pop(node.name, None)
        self._fleet.update(node)
        if not self._fleet.any_active():
            for other in self._fleet:
                if not other.is_lost:
                    other.is_standby = False
                    self._fleet.update(other)
                    break

    # Flights.

    def _launch(self, node: Worker, items: Sequence[int], tokens: float, now: float) -> Send:
        is_copy = any(self._copied[item] for item in items)
        chunk = Chunk(self._next_id, node.name, items, tokens, is_copy)
        self._next_id += 1
        starts_at = node.expected_free(now)
        due_at = starts_at + node.cost.seconds(tokens)
        flight = Flight(chunk, now, starts_at, due_at)
        node.board(flight)
        self._flights[chunk.id] = flight
        if len(node.flights) >= node.window:
            self._idle.pop(node.name, None)
        self._fleet.update(node)
        return Send(chunk)

    def _land(self, chunk: Chunk, now: float) -> Flight | None:
        flight = self._flights.pop(chunk.id, None)
        if flight is not None:
            node = self._fleet[chunk.node]
            node.land(flight, now)
            if not node.is_lost:
                self._idle[node.name] = node
        return flight

    def _cancel_settled(self, now: float) -> list[Instruction]:
        """Cancel the chunks of which every item has been settled by another."""
        settled = self._settled
        late = [
            flight
            for flight in self._flights.values()
            if not self._open
            or (
                (flight.is_copied or flight.chunk.is_copy)
                and all(settled[item] for item in flight.chunk.items)
            )
        ]
        for flight in late:
            self._land(flight.chunk, now)
            node = self._fleet[flight.chunk.node]
            node.tally.wasted += now - flight.sent_at
            node.foresee(now)
            self._fleet.update(node)
        return [Cancel(flight.chunk) for flight in late]

    # Handing out.

    def _dispatch(self, now: float, freed: Worker | None = None) -> list[Instruction]:
        """Give work to the node that just became free, or to all idle ones if things changed."""
        instructions: list[Instruction] = []
        if not self._open or not self._is_started:
            return instructions
        if not self._queue and self._idle:
            self._reissue(now)
        if freed is None or self._is_stirred:
            nodes = [node for node in self._idle.values() if node.has_place(now)]
            nodes.sort(key=lambda node: (len(node.flights), node.cost.seconds_per_token))
            self._is_stirred = False
        else:
            nodes = [freed] if freed.has_place(now) else []
        while nodes:
            # One chunk each, then the second: the first answers tell how to size the rest.
            served = []
            for node in nodes:
                send = self._choose(node, now)
                if send is not None:
                    instructions.append(send)
                    if node.has_place(now):
                        served.append(node)
            nodes = served
        if self._queue and not self._flights:
            self._force(instructions, now)
        return instructions

    def _force(self, instructions: list[Instruction], now: float) -> None:
        """Nothing is under way and everybody waits for another: the best one starts."""
        able = [node for node in self._idle.values() if node.has_place(now)]
        if able:
            self._queue.forget_culprits()
            node = min(able, key=lambda node: node.cost.seconds_per_token)
            send = self._send(node, now, 0.0)
            if send is not None:
                instructions.append(send)

    def _choose(self, node: Worker, now: float) -> Send | None:
        """What `node` should do next, if anything."""
        queue, cost, name = self._queue, node.cost, node.name
        longest = queue.longest(name)
        if longest == float("inf"):
            return None
        if cost.observations == 0:
            return self._probe(node, now)
        free = node.expected_free(now)
        left = self._fleet.horizon(now, queue.tokens) - free
        floor = max(_FLOOR_OVERHEADS * cost.overhead, _MIN_CHUNK_SECONDS)
        seconds = left if left < 2 * floor else max(left / _SHARE_DIVISOR, floor)
        seconds = min(seconds, self._options.chunk_seconds)
        per_token = cost.seconds_per_token
        tokens = min((seconds - cost.overhead) / per_token, _EXTRAPOLATION * cost.reach)
        share = (left - cost.overhead) / per_token
        if max(tokens, share) >= longest:
            return self._send(node, now, tokens)
        shortest = queue.shortest(name)
        if share >= shortest:
            return self._send(node, now, tokens, shortest=True)
        if free + cost.seconds(shortest) > self._fleet.soonest(now, shortest):
            return None
        return self._send(node, now, shortest, shortest=True)

    def _probe(self, node: Worker, now: float) -> Send | None:
        """A first chunk for a node of which nothing is known: a short text, then a few."""
        if not node.flights:
            return self._send(node, now, 0.0, shortest=True)
        return self._send(node, now, _PROBE_TOKENS, count=_PROBE_ITEMS, shortest=True)

    def _send(
        self,
        node: Worker,
        now: float,
        tokens: float,
        *,
        count: int | None = None,
        shortest: bool = False,
    ) -> Send | None:
        options = self._options
        tokens = min(tokens, options.max_tokens)
        items, total = self._queue.take(
            node.name, tokens, count or options.max_items, shortest=shortest
        )
        return self._launch(node, items, total, now) if items else None

    # The tail.

    def _reissue(self, now: float) -> None:
        """Queue copies of the chunk that is expected last, if that helps.

        The copies go through the queue, so that several idle nodes can share them.
        """
        worst: Flight | None = None
        worst_finish = now
        for flight in self._flights.values():
            if not (flight.is_copied or flight.chunk.is_copy):
                finish = flight.expected_finish(now)
                if finish > worst_finish:
                    worst, worst_finish = flight, finish
        if worst is None:
            return
        owner = worst.chunk.node
        items = [item for item in worst.chunk.items if not self._settled[item]]
        overhead = min((n.cost.overhead for n in self._idle.values() if n.name != owner), default=0)
        tokens = sum(self._tokens[item] for item in items)
        rescued = self._fleet.horizon_without(owner, now, tokens) + overhead
        if rescued - now > _COPY_GAIN * (worst_finish - now):
            return
        worst.is_copied = True
        for item in items:
            self._copied[item] = 1
        self._queue.put_back(items, avoid=owner)
        self._is_stirred = True
