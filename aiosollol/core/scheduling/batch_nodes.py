"""The nodes working on a batch, and when they can finish the remaining work.

The *horizon* is the earliest time at which all active nodes together can finish all waiting work.
Each node needs at least one more request, so it counts as free only after the overhead of one.
Every decision needs the horizon, so the common case is O(1): while every node is free before it,
it is ``(work + sum of rate x free) / sum of rates``, and both sums are updated as nodes change.
Near the end, when some nodes are busy beyond it, it is computed exactly (`cost.earliest_finish`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify
from typing import NamedTuple

from aiosollol.core.scheduling.cost import Cost, earliest_finish

_UPDATES_PER_RECKONING = 4
FAILURES_TO_CHECK = 2
"""Failures in a row after which a node must answer a check. Its queue holds two chunks."""
FAILURES_TO_DISREGARD = 6
"""Failures in a row after which an item is settled without this node's opinion of it."""
_LATE = 1.25
"""A chunk is late after this multiple of its predicted duration."""


class Chunk(NamedTuple):
    """Items for one request.

    items: indices into the batch; empty for a check, which sends a known good text to a node that
    failed.
    is_copy: whether another chunk already has them.
    """

    id: int
    node: str
    items: Sequence[int]
    tokens: float
    is_copy: bool = False

    @property
    def is_check(self) -> bool:
        return not self.items


@dataclass(slots=True)
class Tally:
    """One node's work in the batch so far. Durations are seconds.

    items: items it answered first.
    requests: requests sent to it.
    busy: time with at least one request in flight.
    wasted: time spent on requests whose items other nodes answered first.
    retries: its failed requests.
    copies: requests for items that another node was working on.
    """

    items: int = 0
    requests: int = 0
    busy: float = 0.0
    wasted: float = 0.0
    retries: int = 0
    copies: int = 0


@dataclass(slots=True, eq=False)
class Flight:
    """A chunk in flight. All times except `sent_at` and `begun_at` are predictions.

    sent_at: when it was assigned.
    begun_at: when its request had a slot and was sent; infinity before.
    """

    chunk: Chunk
    sent_at: float
    starts_at: float
    due_at: float
    is_copied: bool = False
    begun_at: float = float("inf")

    def expected_finish(self, now: float) -> float:
        """Predicted time of the answer. A late chunk is assumed to be halfway through."""
        if now > self.starts_at + _LATE * (self.due_at - self.starts_at):
            return now + (now - self.starts_at)
        return self.due_at


@dataclass(slots=True, eq=False)
class BatchNode:
    """One node of a batch.

    free_at: when it is predicted to finish its chunks.
    is_lost, may_return: whether it gets no work, and whether it is only down.
    retry_at: no request is sent before.
    streak: its failures since its last answer.
    failing_since: when the first of them was, or it went down; infinity if neither.
    is_hung: whether its answers are far too late, see `core.scheduling.hangs`.
    convictions: how often another node answered items it had failed, since its last own answer.
    expects_live: whether it may get live requests, which wait for its chunks.
    """

    name: str
    cost: Cost
    window: int
    free_at: float
    is_standby: bool
    tally: Tally
    is_lost: bool = False
    may_return: bool = False
    retry_at: float = 0.0
    streak: int = 0
    failing_since: float = float("inf")
    is_hung: bool = False
    convictions: int = 0
    expects_live: bool = False
    flights: dict[int, Flight] = field(default_factory=dict)
    busy_since: float = 0.0
    last_done: float = float("-inf")
    # Its rate, and the cost that it was computed from.
    full_rate: float = 0.0
    rated: Cost | None = None
    # Its current contribution to the sums in `BatchNodes`.
    rate: float = 0.0
    counted_free: float = 0.0

    @property
    def is_active(self) -> bool:
        return not (self.is_lost or self.is_standby)

    @property
    def needs_check(self) -> bool:
        """Whether it failed repeatedly, so that it must answer a check before it gets items."""
        return self.streak >= FAILURES_TO_CHECK

    @property
    def is_working(self) -> bool:
        """Whether it can take items."""
        return self.is_active and not self.needs_check and not self.is_hung

    def has_place(self, now: float) -> bool:
        """Whether it can take another chunk now."""
        has_room = len(self.flights) < self.window and self.retry_at <= now
        return self.is_active and has_room and not self.is_hung

    def expected_free(self, now: float) -> float:
        """When it will finish its chunks, given the current time."""
        free = max(self.free_at, now, self.retry_at)
        if self.flights:
            first = next(iter(self.flights.values()))
            if now > first.due_at:
                free = max(free, now + (now - first.starts_at))
        return free

    def board(self, flight: Flight) -> None:
        """Add a chunk that was sent to it."""
        if not self.flights:
            self.busy_since = flight.sent_at
        self.flights[flight.chunk.id] = flight
        self.free_at = flight.due_at
        self.tally.requests += 1
        self.tally.copies += flight.chunk.is_copy

    def land(self, flight: Flight, now: float) -> None:
        """Remove a chunk that was answered, failed or was cancelled."""
        del self.flights[flight.chunk.id]
        if not self.flights:
            self.is_hung = False
            self.tally.busy += now - self.busy_since

    def foresee(self, now: float) -> None:
        """Recompute the predictions for its chunks: one after another, from `now`."""
        at = now
        for flight in self.flights.values():
            flight.starts_at = at
            at += self.cost.seconds(flight.chunk.tokens)
            flight.due_at = at
        self.free_at = at


class BatchNodes:
    """The nodes of a batch, by name.

    chunk_seconds: usual duration of a chunk. Each chunk pays the overhead, which lowers the rate.
    """

    def __init__(self, chunk_seconds: float) -> None:
        self._chunk_seconds = chunk_seconds
        self._workers: dict[str, BatchNode] = {}
        self._rate = 0.0
        self._filled = 0.0
        self._latest_free = 0.0
        # The last exact horizon, and the number of updates since.
        self._exact = float("-inf")
        self._updates = 0

    def __iter__(self) -> Iterator[BatchNode]:
        return iter(self._workers.values())

    def __getitem__(self, name: str) -> BatchNode:
        return self._workers[name]

    def get(self, name: str) -> BatchNode | None:
        return self._workers.get(name)

    def put(self, worker: BatchNode) -> None:
        """Add a node, or replace the one with the same name."""
        self._workers[worker.name] = worker
        self.update(worker)

    def names(self) -> Iterable[str]:
        return self._workers.keys()

    def any_working(self) -> bool:
        """Whether any node can take items."""
        return any(worker.is_working for worker in self._workers.values())

    def able(self) -> list[str]:
        """Names of the nodes that could take an item now or soon, with those on standby."""
        present = [worker for worker in self._workers.values() if not worker.is_lost]
        if self.any_working():
            present = [
                node for node in present if node.streak < FAILURES_TO_DISREGARD and not node.is_hung
            ]
        return [worker.name for worker in present]

    def absent(self, now: float, patience: float) -> dict[str, float]:
        """The nodes that are down and may come back: by name, until when they are waited for."""
        able = set(self.able())
        return {
            node.name: node.failing_since + patience
            for node in self._workers.values()
            if node.name not in able
            and (node.may_return or not node.is_lost)
            and not node.is_hung
            and now < node.failing_since + patience < float("inf")
        }

    def working(self) -> list[str]:
        """Names of the nodes that can take items."""
        return [worker.name for worker in self._workers.values() if worker.is_working]

    def update(self, worker: BatchNode) -> None:
        """Update the sums. Call it whenever a node has changed."""
        self._rate -= worker.rate
        self._filled -= worker.rate * worker.counted_free
        if worker.rated is not worker.cost:
            worker.rated, worker.full_rate = worker.cost, self._rate_of(worker.cost)
        worker.rate = worker.full_rate if worker.is_working else 0.0
        worker.counted_free = worker.free_at + worker.cost.overhead
        self._rate += worker.rate
        self._filled += worker.rate * worker.counted_free
        self._latest_free = max(self._latest_free, worker.counted_free)
        self._updates += 1

    def horizon(self, now: float, tokens: float) -> float:
        """The earliest time at which all nodes can finish `tokens` of waiting work."""
        if self._rate > 0.0:
            surface = (tokens + self._filled) / self._rate
            if surface > self._latest_free and surface > now:
                return surface
        # Near the end. Assigning work does not move the horizon, because it only goes from the
        # queue to a node. Only wrong predictions do, so with many nodes it need not be
        # recomputed each time.
        if self._exact <= now or self._updates > len(self._workers) // _UPDATES_PER_RECKONING:
            self._exact = self.horizon_without(None, now, tokens)
            self._updates = 0
            self._latest_free = max(worker.counted_free for worker in self._workers.values())
        return self._exact

    def horizon_without(self, absent: str | None, now: float, tokens: float) -> float:
        """The horizon without one node. Always exact, O(n log n)."""
        return earliest_finish(
            [
                (worker.expected_free(now) + worker.cost.overhead, worker.rate)
                for worker in self._workers.values()
                if worker.is_working and worker.name != absent
            ],
            tokens,
        )

    def ranking(self, now: float, tokens: float) -> list[tuple[float, int, BatchNode]]:
        """The active nodes as a heap, by when each could finish one more item of `tokens`.

        The second field of an entry is unique, so that nodes are never compared.
        """
        ranking = [
            (worker.expected_free(now) + worker.cost.seconds(tokens), place, worker)
            for place, worker in enumerate(self._workers.values())
            if worker.is_working
        ]
        heapify(ranking)
        return ranking

    def _rate_of(self, cost: Cost) -> float:
        """Tokens per second in chunks of the usual duration."""
        seconds = max(self._chunk_seconds, 2 * cost.overhead)
        return (seconds - cost.overhead) / (seconds * cost.seconds_per_token)
