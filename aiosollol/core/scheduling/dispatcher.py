"""Assign the work of a batch to nodes, as late as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heapreplace
from typing import NamedTuple, TypeAlias

from aiosollol.core.blame import RETURN_PATIENCE
from aiosollol.core.routing.retry import FIRST_PAUSE
from aiosollol.core.scheduling.batch_nodes import (
    BatchNode,
    BatchNodes,
    Chunk,
    Flight,
)
from aiosollol.core.scheduling.chunk_sizing import (
    MIN_CHUNK_SECONDS,
    Portion,
    portion,
    probe,
)
from aiosollol.core.scheduling.colocation import TRIAL_CHUNK_SECONDS, ColocationTrials
from aiosollol.core.scheduling.evidence import Evidence
from aiosollol.core.scheduling.live_traffic import LIVE_LATENCY_TARGET, live_chunk_seconds
from aiosollol.core.scheduling.work_queue import ItemLedger, WorkQueue

CHECK_TOKENS = 8.0
"""Tokens of the text of a check, about."""
_COPY_GAIN = 0.9
"""A copy must be predicted to take at most this fraction of the original's remaining time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleOptions:
    """How a batch is cut into chunks. Durations are seconds.

    chunk_seconds: target duration of a chunk.
    live_chunk_seconds: the same on a node that may get live requests.
    max_items, max_tokens: maximum size of a chunk.
    first_pause: pause after a node's first failure that may pass; doubled after each further one.
    longest_pause: bound of the pauses while the failure may pass, or while no node works.
    longest_refusal: bound of the pauses of a node that refuses what other nodes answer.
    return_patience: how long an item that one node refused waits for another node that is down.
    """

    chunk_seconds: float = 0.5
    live_chunk_seconds: float = LIVE_LATENCY_TARGET
    max_items: int = 256
    max_tokens: float = 65_536.0
    first_pause: float = FIRST_PAUSE
    longest_pause: float = 0.4
    longest_refusal: float = 8.0
    return_patience: float = RETURN_PATIENCE


class Send(NamedTuple):
    chunk: Chunk


class Cancel(NamedTuple):
    chunk: Chunk


Instruction: TypeAlias = Send | Cancel


class Dispatcher:
    """Fills the free slots of the nodes from the queue, for `BatchState`.

    flights: the chunks in flight, by id, in the order in which they were sent.
    """

    def __init__(
        self,
        tokens: Sequence[float],
        options: ScheduleOptions,
        queue: WorkQueue,
        fleet: BatchNodes,
        ledger: ItemLedger,
        trials: ColocationTrials,
        evidence: Evidence,
    ) -> None:
        self._evidence = evidence
        self._tokens = tokens
        self._options = options
        self._queue = queue
        self._fleet = fleet
        self._ledger = ledger
        self._trials = trials
        self._next_id = 0
        self.flights: dict[int, Flight] = {}
        self._started_at = math.inf
        # Nodes with a free slot that had nothing to do. They are reconsidered only after an event
        # that may change that: `stir`.
        self._idle: dict[str, BatchNode] = {}
        self._is_stirred = False
        self._changed_at = 0.0
        # The node that the last items wait for, and when it should finish one of them.
        self._awaited: BatchNode | None = None
        self._awaited_finish = math.inf

    def rest(self, node: BatchNode) -> None:
        """Record whether a node has a free slot."""
        if node.is_active and len(node.flights) < node.window:
            self._idle[node.name] = node
        else:
            self._idle.pop(node.name, None)

    def stir(self) -> None:
        """Reconsider every idle node at the next dispatch."""
        self._is_stirred = True

    def start(self, now: float) -> list[Instruction]:
        """Start assigning work; `dispatch` does nothing before."""
        self._started_at = now
        self._is_stirred = True
        return self.dispatch(now)

    def next_tick(self, now: float) -> float | None:
        """When `dispatch` must be called if no event comes first; None if never."""
        if not self._ledger.open or not self._idle:
            return None
        if self._queue and not self.flights:
            # Nothing is in flight that could trigger a dispatch. A time in the past means now.
            return max(now, min(node.retry_at for node in self._idle.values()))
        waits = [node.retry_at for node in self._idle.values() if node.retry_at > now]
        if self.flights and len(waits) < len(self._idle):
            # Often at first, when a copy helps most, then less and less often.
            waits.append(now + max(MIN_CHUNK_SECONDS, (now - self._changed_at) / 4))
        return min(waits, default=None)

    def dispatch(self, now: float, freed: BatchNode | None = None) -> list[Instruction]:
        """Give work to the node that just became free, or to all idle nodes after `stir`."""
        instructions: list[Instruction] = []
        if not self._ledger.open or now < self._started_at:
            return instructions
        if freed is None and not self._queue and self._idle:
            self._reissue(now)
        if freed is None or self._is_stirred:
            self._awaited, self._awaited_finish = None, math.inf
            nodes = [node for node in self._idle.values() if node.has_place(now)]
            nodes.sort(key=lambda node: (len(node.flights), node.cost.seconds_per_token))
            self._is_stirred = False
        else:
            nodes = [freed] if freed.has_place(now) else []
        while nodes:
            # One chunk each, then a second one: the first answers set the size of the rest.
            served = []
            for node in nodes:
                if not node.has_place(now):  # `_hand_out_last` filled it in this round
                    continue
                if node.needs_check:
                    if not node.flights:
                        instructions.append(self.check(node, now))
                    continue
                due = self._due(node, now)
                if due is None:
                    instructions += self._hand_out_last(node, now)
                    continue
                send = self._send(node, now, due)
                if send is not None:
                    instructions.append(send)
                    if node.has_place(now):
                        served.append(node)
            nodes = served
        if self._evidence.held:
            instructions += self._prove(now)
        if self._queue and not self.flights:
            self._force(instructions, now)
        if instructions:
            self._changed_at = now
        return instructions

    def check(self, node: BatchNode, now: float) -> Send:
        """Send a text that cannot be at fault, to see whether the node answers at all."""
        return self._launch(node, (), CHECK_TOKENS, now)

    def _prove(self, now: float) -> list[Instruction]:
        """Check the idle nodes whose answer would decide about an item."""
        return [
            self.check(node, now)
            for node in list(self._idle.values())
            if not node.flights and node.has_place(now) and self._evidence.needs_proof(node.name)
        ]

    def _force(self, instructions: list[Instruction], now: float) -> None:
        """Start the fastest node: nothing is in flight, and each node waits for another."""
        able = [node for node in self._idle.values() if node.is_working and node.has_place(now)]
        if able:
            self._queue.forget_culprits()
            node = min(able, key=lambda node: node.cost.seconds_per_token)
            send = self._send(node, now, Portion(0.0, 1))
            if send is not None:
                instructions.append(send)

    def _due(self, node: BatchNode, now: float) -> Portion | None:
        """The next portion for `node`; None if it is less than one item."""
        queue, options = self._queue, self._options
        if node.cost.observations == 0:
            return probe(is_first=not node.flights)
        horizon = self._fleet.horizon(now, queue.tokens)
        left = horizon - node.expected_free(now)
        return portion(
            node.cost,
            left,
            queue.longest(node.name),
            queue.shortest(node.name),
            batch_seconds=horizon - self._started_at,
            chunk_seconds=self._chunk_seconds(node, now),
            max_items=options.max_items,
            max_tokens=options.max_tokens,
        )

    def _hand_out_last(self, freed: BatchNode, now: float) -> list[Instruction]:
        """Give each of the last items to the node that would finish it first.

        If that node is busy now, the item waits for it.
        """
        shortest = self._queue.shortest(freed.name)
        if shortest == math.inf:
            return []
        if freed is not self._awaited:
            finish = freed.expected_free(now) + freed.cost.seconds(shortest)
            if finish > self._awaited_finish:
                return []
        instructions: list[Instruction] = []
        ranking = self._fleet.ranking(now, shortest)
        while self._queue and ranking:
            _, place, node = ranking[0]
            if not node.has_place(now):
                break
            send = self._send(node, now, Portion(shortest, 1, True))
            if send is None:  # every waiting item avoids this node
                heappop(ranking)
                continue
            instructions.append(send)
            finish = node.expected_free(now) + node.cost.seconds(shortest)
            heapreplace(ranking, (finish, place, node))
        if self._queue and ranking:
            self._awaited_finish, _, self._awaited = ranking[0]
        return instructions

    def _send(self, node: BatchNode, now: float, due: Portion) -> Send | None:
        items, tokens = self._queue.take(node.name, due.tokens, due.items, shortest=due.shortest)
        return self._launch(node, items, tokens, now) if items else None

    def _launch(self, node: BatchNode, items: Sequence[int], tokens: float, now: float) -> Send:
        is_copy = self._ledger.is_copy(items)
        chunk = Chunk(self._next_id, node.name, items, tokens, is_copy)
        self._next_id += 1
        starts_at = node.expected_free(now)
        due_at = starts_at + node.cost.seconds(tokens)
        flight = Flight(chunk, now, starts_at, due_at)
        node.board(flight)
        self.flights[chunk.id] = flight
        self.rest(node)
        self._fleet.update(node)
        return Send(chunk)

    # Nodes on one machine get small chunks while they are compared.

    def is_to_be_tried(self, first: BatchNode, now: float) -> bool:
        """Whether to begin a trial of another node beside `first` now."""
        return self._trials.waits_beside(first.name) and self._trials.pays(
            first.cost, self._fleet.horizon(now, self._queue.tokens) - now
        )

    def _chunk_seconds(self, node: BatchNode, now: float) -> float:
        """Maximum duration of a node's next chunk."""
        if self._trials.concerns(node.name) or self.is_to_be_tried(node, now):
            return TRIAL_CHUNK_SECONDS
        options = self._options
        if node.expects_live:
            return live_chunk_seconds(node.cost, options.live_chunk_seconds, options.chunk_seconds)
        return options.chunk_seconds

    # Nodes that hang, and the tail.

    def copy_from_hung(self) -> None:
        """Queue copies of the chunks of nodes that hang, if another node works."""
        if self._fleet.any_working():
            for flight in list(self.flights.values()):
                if self._fleet[flight.chunk.node].is_hung:
                    items = self.not_elsewhere(self._ledger.unsettled(flight.chunk.items))
                    if items:
                        self._copy(flight, items)

    def not_elsewhere(self, items: Sequence[int]) -> list[int]:
        """`items` without those in the queue, or in flight on a node that does not hang."""
        elsewhere = self._queue.returned()
        for flight in self.flights.values():
            if not self._fleet[flight.chunk.node].is_hung:
                elsewhere.update(flight.chunk.items)
        return [item for item in items if item not in elsewhere]

    def _copy(self, flight: Flight, items: Sequence[int]) -> None:
        flight.is_copied = True
        self._ledger.copy(items)
        self._queue.put_back(items, avoid=(flight.chunk.node,))
        self._is_stirred = True

    def _reissue(self, now: float) -> None:
        """Queue a copy of the chunk predicted to finish last, if that saves time.

        It goes through the queue, so that several idle nodes can share it.
        """
        worst: Flight | None = None
        worst_finish = now
        for flight in self.flights.values():
            if not (flight.is_copied or flight.chunk.is_copy or flight.chunk.is_check):
                finish = flight.expected_finish(now)
                if finish > worst_finish:
                    worst, worst_finish = flight, finish
        if worst is None:
            return
        owner = worst.chunk.node
        items = self._ledger.unsettled(worst.chunk.items)
        overhead = min((n.cost.overhead for n in self._idle.values() if n.name != owner), default=0)
        tokens = sum(self._tokens[item] for item in items)
        rescued = self._fleet.horizon_without(owner, now, tokens) + overhead
        if rescued - now > _COPY_GAIN * (worst_finish - now):
            return
        self._copy(worst, items)
