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

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heapreplace
from typing import TypeAlias

from aiosollol.core.cost import Cost
from aiosollol.core.fleet import Chunk, Fleet, Flight, Tally, Worker
from aiosollol.core.ledger import Ledger
from aiosollol.core.queue import WorkQueue
from aiosollol.core.resilience import Failure
from aiosollol.core.sizing import MIN_CHUNK_SECONDS, Portion, portion, probe
from aiosollol.core.trace import Outcome, Slice
from aiosollol.core.trial import TRIAL_CHUNK_SECONDS, Finding, Trials
from aiosollol.errors import SollolError

_PLAN_TOLERANCE = 1.5
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

    def __init__(
        self,
        tokens: Sequence[float],
        options: ScheduleOptions | None = None,
        trials: Iterable[tuple[str, str]] = (),
        *,
        expected_seconds: float = math.inf,
    ) -> None:
        """`trials`: pairs of nodes for which it is to be measured whether both should work.

        `expected_seconds`: how long the batch should take. If it turns out to take much longer, the
        plan was wrong, and the nodes that stand by join.
        """
        self._tokens = tokens
        self._options = options or ScheduleOptions()
        self._queue = WorkQueue(tokens)
        self._fleet = Fleet(self._options.chunk_seconds)
        self._flights: dict[int, Flight] = {}
        self._ledger = Ledger(len(tokens))
        self._next_id = 0
        self._trials = Trials(trials)
        self.last_errors: dict[str, SollolError] = {}
        self.tallies: dict[str, Tally] = {}
        self.slices: list[Slice] = []
        self.splits = 0
        self._is_started = False
        self._expected_seconds = expected_seconds
        self._late_at = math.inf
        # Nodes with a free place for which there was nothing to do. They are asked again only
        # when something happened that may change that: `_is_stirred`.
        self._idle: dict[str, Worker] = {}
        self._is_stirred = False
        self._changed_at = 0.0
        # For whom the last items wait, and when it should be done with one of them.
        self._awaited: Worker | None = None
        self._awaited_finish = float("inf")

    # What the executor asks.

    @property
    def is_finished(self) -> bool:
        """Every item has an answer or an error, and nothing is under way."""
        return not self._ledger.open and not self._flights

    @property
    def errors(self) -> dict[int, SollolError]:
        """Item -> its error, for the items that were given up."""
        return self._ledger.errors

    @property
    def findings(self) -> list[Finding]:
        """Whether nodes on one machine were found to be faster together."""
        return self._trials.findings

    @property
    def done_count(self) -> int:
        """Items that are settled, by an answer or an error."""
        return self._ledger.count - self._ledger.open

    @property
    def retries(self) -> int:
        return sum(tally.retries for tally in self.tallies.values())

    @property
    def copies(self) -> int:
        return sum(tally.copies for tally in self.tallies.values())

    @property
    def is_stuck(self) -> bool:
        """Items are open, but every node is lost."""
        return bool(self._ledger.open) and not self._flights and not self._fleet.any_active()

    def has_node(self, name: str) -> bool:
        """Whether `name` takes part, or stands by, and is not lost."""
        node = self._fleet.get(name)
        return node is not None and not node.is_lost

    def next_tick(self, now: float) -> float | None:
        """When `tick` should be called if nothing happens before; None: never."""
        if not self._ledger.open or not self._idle:
            return None
        waits = [node.retry_at for node in self._idle.values() if node.retry_at > now]
        if self._flights and len(waits) < len(self._idle):
            # Often at first, when a copy helps most, and then ever more seldom.
            waits.append(now + max(MIN_CHUNK_SECONDS, (now - self._changed_at) / 4))
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

        A `standby` node gets work only when all others are lost, or to be tried beside another.
        """
        known = self._fleet.get(name)
        if known is not None and not known.is_lost:
            return []
        tally = self.tallies.setdefault(name, Tally())
        node = Worker(name, cost, window, now + ahead, standby, tally)
        if known is not None:
            node.flights = known.flights
            node.busy_since = known.busy_since
        if node.is_active:
            self._idle[name] = node
        self._fleet.put(node)
        self._is_stirred = True
        return self._dispatch(now)

    def start(self, now: float) -> list[Instruction]:
        """Hand out the first chunks, once the nodes known at the start have been announced."""
        self._is_started = True
        self._late_at = now + _PLAN_TOLERANCE * self._expected_seconds
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
        won = self._ledger.answer(chunk.items)
        node.tally.items += won
        node.tally.tokens += chunk.tokens
        if not won:
            node.tally.wasted += now - flight.sent_at
        self._note(flight, now, "done" if won else "late")
        worked_from = max(flight.sent_at, node.last_done)
        node.last_done = now
        node.foresee(now)
        self._fleet.update(node)
        self._judge(node, chunk, worked_from, now)
        if self._late_at < math.inf:
            self._check_plan(now)
        instructions: list[Instruction] = []
        if chunk.is_copy or flight.is_copied:
            self._queue.discard(self._ledger.is_settled)
        if chunk.is_copy or flight.is_copied or not self._ledger.open:
            instructions = self._cancel_settled(now)
        return instructions + self._dispatch(now, node)

    def failed(
        self, chunk: Chunk, now: float, failure: Failure, error: SollolError
    ) -> list[Instruction]:
        """A chunk was not answered. Its items are tried again, alone if they look guilty."""
        flight = self._land(chunk, now)
        if flight is None:
            return []
        self._note(flight, now, "failed")
        node = self._fleet[chunk.node]
        node.last_done = now
        node.foresee(now)
        self.last_errors[node.name] = error
        items = self._ledger.unsettled(chunk.items)
        if chunk.is_copy or flight.is_copied:
            items = self._not_elsewhere(items)
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
        self._ledger.give_up_all(error)
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
        if self._ledger.attempt(items) < 2:
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
        elif items and self._ledger.attempts(items[0]) >= allowed:
            self._ledger.give_up(items[0], error)
        elif items:
            self._queue.put_back(items, avoid=culprit)

    def _not_elsewhere(self, items: Sequence[int]) -> list[int]:
        """`items` without those of which a copy or the original is still under way or waiting."""
        elsewhere = self._queue.returned()
        for flight in self._flights.values():
            elsewhere.update(flight.chunk.items)
        return [item for item in items if item not in elsewhere]

    def _lose(self, node: Worker, error: SollolError | None) -> None:
        if error is not None:
            self.last_errors[node.name] = error
        if node.is_lost:
            return
        node.is_lost = True
        self._idle.pop(node.name, None)
        self._fleet.update(node)
        if self._trials.concerns(node.name):
            self._trials.drop()
        if not self._fleet.any_active():
            spare = next((other for other in self._fleet if not other.is_lost), None)
            if spare is not None:
                self._set_standby(spare, False)

    def _set_standby(self, node: Worker, is_standby: bool) -> None:
        node.is_standby = is_standby
        self._fleet.update(node)
        if node.is_active and len(node.flights) < node.window:
            self._idle[node.name] = node
        else:
            self._idle.pop(node.name, None)
        self._is_stirred = True

    def _check_plan(self, now: float) -> None:
        """Call in the nodes that stand by if the batch will take much longer than planned."""
        if self._fleet.horizon(now, self._queue.tokens) > self._late_at:
            self._late_at = math.inf
            for node in self._fleet:
                if node.is_standby and not node.is_lost:
                    self._set_standby(node, False)

    # Nodes on one machine.

    def _judge(self, node: Worker, chunk: Chunk, worked_from: float, now: float) -> None:
        """Begin, continue or end the measurement of two nodes on one machine."""
        finding = self._trials.answered(node.name, chunk.tokens, worked_from, now)
        if finding is not None:
            if not finding.is_faster_together:
                self._set_standby(self._fleet[finding.second], True)
        elif self._is_to_be_tried(node, now):
            under_way = [node.cost.seconds(flight.chunk.tokens) for flight in node.flights.values()]
            if max(under_way, default=0.0) <= 1.5 * TRIAL_CHUNK_SECONDS:
                second = self._fleet.get(self._trials.begin(node.cost, now))
                if second is None or second.is_lost:
                    self._trials.drop()
                else:
                    self._set_standby(second, False)

    def _is_to_be_tried(self, first: Worker, now: float) -> bool:
        """Whether it is time to try another node beside `first`."""
        return self._trials.waits_beside(first.name) and self._trials.pays(
            first.cost, self._fleet.horizon(now, self._queue.tokens) - now
        )

    def _chunk_seconds(self, node: Worker, now: float) -> float:
        """How long a chunk of a node should take at most."""
        if self._trials.concerns(node.name) or self._is_to_be_tried(node, now):
            return TRIAL_CHUNK_SECONDS
        return self._options.chunk_seconds

    # Flights.

    def _launch(self, node: Worker, items: Sequence[int], tokens: float, now: float) -> Send:
        is_copy = self._ledger.is_copy(items)
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
            if node.is_active:
                self._idle[node.name] = node
        return flight

    def _note(self, flight: Flight, now: float, outcome: Outcome) -> None:
        chunk = flight.chunk
        self.slices.append(
            Slice(
                chunk.node,
                flight.sent_at,
                now,
                len(chunk.items),
                chunk.tokens,
                outcome,
                chunk.is_copy,
            )
        )

    def _cancel_settled(self, now: float) -> list[Instruction]:
        """Cancel the chunks of which every item has been settled by another."""
        late = [
            flight
            for flight in self._flights.values()
            if not self._ledger.open
            or (
                (flight.is_copied or flight.chunk.is_copy)
                and self._ledger.are_settled(flight.chunk.items)
            )
        ]
        for flight in late:
            self._land(flight.chunk, now)
            self._note(flight, now, "cancelled")
            node = self._fleet[flight.chunk.node]
            node.tally.wasted += now - flight.sent_at
            node.foresee(now)
            self._fleet.update(node)
        return [Cancel(flight.chunk) for flight in late]

    # Handing out.

    def _dispatch(self, now: float, freed: Worker | None = None) -> list[Instruction]:
        """Give work to the node that just became free, or to all idle ones if things changed."""
        instructions: list[Instruction] = []
        if not self._ledger.open or not self._is_started:
            return instructions
        if freed is None and not self._queue and self._idle:
            self._reissue(now)
        if freed is None or self._is_stirred:
            self._awaited, self._awaited_finish = None, float("inf")
            nodes = [node for node in self._idle.values() if node.has_place(now)]
            nodes.sort(key=lambda node: (len(node.flights), node.cost.seconds_per_token))
            self._is_stirred = False
        else:
            nodes = [freed] if freed.has_place(now) else []
        while nodes:
            # One chunk each, then the second: the first answers tell how to size the rest.
            served = []
            for node in nodes:
                if not node.has_place(now):  # it got the last item while another was asked
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
        if self._queue and not self._flights:
            self._force(instructions, now)
        if instructions:
            self._changed_at = now
        return instructions

    def _force(self, instructions: list[Instruction], now: float) -> None:
        """Nothing is under way and everybody waits for another: the best one starts."""
        able = [node for node in self._idle.values() if node.has_place(now)]
        if able:
            self._queue.forget_culprits()
            node = min(able, key=lambda node: node.cost.seconds_per_token)
            send = self._send(node, now, Portion(0.0, 1))
            if send is not None:
                instructions.append(send)

    def _due(self, node: Worker, now: float) -> Portion | None:
        """What `node` should get next; None if that is less than one item."""
        queue, options = self._queue, self._options
        if node.cost.observations == 0:
            return probe(is_first=not node.flights)
        left = self._fleet.horizon(now, queue.tokens) - node.expected_free(now)
        return portion(
            node.cost,
            left,
            queue.longest(node.name),
            queue.shortest(node.name),
            chunk_seconds=self._chunk_seconds(node, now),
            max_items=options.max_items,
            max_tokens=options.max_tokens,
        )

    def _hand_out_last(self, freed: Worker, now: float) -> list[Instruction]:
        """Give each of the last items to whoever would be done with it first.

        That may be a node that is busy now: then it is waited for.
        """
        shortest = self._queue.shortest(freed.name)
        if shortest == float("inf"):
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
            if send is None:  # there is nothing that this one may have
                heappop(ranking)
                continue
            instructions.append(send)
            finish = node.expected_free(now) + node.cost.seconds(shortest)
            heapreplace(ranking, (finish, place, node))
        if self._queue and ranking:
            self._awaited_finish, _, self._awaited = ranking[0]
        return instructions

    def _send(self, node: Worker, now: float, due: Portion) -> Send | None:
        items, tokens = self._queue.take(node.name, due.tokens, due.items, shortest=due.shortest)
        return self._launch(node, items, tokens, now) if items else None

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
        items = self._ledger.unsettled(worst.chunk.items)
        overhead = min((n.cost.overhead for n in self._idle.values() if n.name != owner), default=0)
        tokens = sum(self._tokens[item] for item in items)
        rescued = self._fleet.horizon_without(owner, now, tokens) + overhead
        if rescued - now > _COPY_GAIN * (worst_finish - now):
            return
        worst.is_copied = True
        self._ledger.copy(items)
        self._queue.put_back(items, avoid=owner)
        self._is_stirred = True
