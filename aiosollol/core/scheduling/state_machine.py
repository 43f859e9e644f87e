"""One batch as a state machine: events in, instructions out.

The executor reports events (`node_up`, `done`, `failed`, `node_lost`, `tick`) and carries out the
returned instructions (`Send`, `Cancel`) until `is_finished`. Nothing here waits or reads a clock.

Work is assigned as late as possible. Whenever a node has a free slot, the *horizon* is computed:
the earliest time at which all nodes together can finish all waiting work. A node's share is the
work it can do until then. It gets a part of its share, smaller towards the end. A node whose share
is less than one item gets none, unless no other node would finish that item sooner.

When the queue is empty, idle nodes get copies of late chunks if that ends the batch sooner. The
first answer counts, the other request is cancelled.

A failure is evidence, not a verdict (`core.blame`). Failed items go to other nodes, in smaller
chunks if they may be the cause. A node that failed twice in a row gets a *check*, a text that
cannot be at fault, until it answers one; pauses between its checks grow. So an outage of all nodes
costs a few small requests, and no item.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from aiosollol.core.report import Outcome, Slice
from aiosollol.core.routing.retry import Failure
from aiosollol.core.scheduling import hangs
from aiosollol.core.scheduling.batch_nodes import (
    FAILURES_TO_CHECK,
    BatchNode,
    BatchNodes,
    Chunk,
    Flight,
    Tally,
)
from aiosollol.core.scheduling.colocation import TRIAL_CHUNK_SECONDS, ColocationTrials, Finding
from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.dispatcher import (
    Cancel,
    Dispatcher,
    Instruction,
    ScheduleOptions,
)
from aiosollol.core.scheduling.evidence import Evidence
from aiosollol.core.scheduling.failures import Failures
from aiosollol.core.scheduling.work_queue import ItemLedger, WorkQueue
from aiosollol.errors import SollolError

if TYPE_CHECKING:
    from random import Random

_PLAN_TOLERANCE = 1.5


class BatchState:
    """A batch of items with known token counts, over nodes that come and go.

    failures: handles failed chunks and knows about them, see `core.scheduling.failures`.
    """

    def __init__(
        self,
        tokens: Sequence[float],
        options: ScheduleOptions | None = None,
        trials: Iterable[tuple[str, str]] = (),
        *,
        expected_seconds: float = math.inf,
        rng: Random | None = None,
        times: Mapping[int, int] | None = None,
    ) -> None:
        """tokens: estimated tokens of each item.

        trials: pairs of nodes to measure for whether they are faster together.
        expected_seconds: planned duration. If the batch takes much longer, standby nodes join.
        rng: for the jitter of pauses; None for none.
        times: see `WorkQueue`.
        """
        self._options = options or ScheduleOptions()
        self._queue = WorkQueue(tokens, times)
        self._fleet = BatchNodes(self._options.chunk_seconds)
        self._ledger = ItemLedger(len(tokens))
        self._trials = ColocationTrials(trials)
        self._evidence = Evidence()
        self._dispatcher = Dispatcher(
            tokens,
            self._options,
            self._queue,
            self._fleet,
            self._ledger,
            self._trials,
            self._evidence,
        )
        self.failures = Failures(
            self._options,
            self._queue,
            self._fleet,
            self._ledger,
            self._trials,
            self._evidence,
            self._dispatcher,
            rng,
        )
        self._flights = self._dispatcher.flights
        self.tallies: dict[str, Tally] = {}
        self.slices: list[Slice] = []
        self._expected_seconds = expected_seconds
        self._late_at = math.inf
        self._look_at = -math.inf

    # Queries by the executor.

    @property
    def is_finished(self) -> bool:
        """Whether every item has an answer or an error, and nothing is in flight."""
        return not self._ledger.open and not self._flights

    @property
    def errors(self) -> dict[int, SollolError]:
        """Errors of the items that were given up, by item."""
        return self._ledger.errors

    @property
    def findings(self) -> list[Finding]:
        """The results of the trials of nodes on one machine."""
        return self._trials.findings

    @property
    def done_count(self) -> int:
        """Number of items with an answer or an error."""
        return self._ledger.count - self._ledger.open

    @property
    def copies(self) -> int:
        return sum(tally.copies for tally in self.tallies.values())

    @property
    def has_flights(self) -> bool:
        """Whether any chunk is in flight."""
        return bool(self._flights)

    @property
    def silent_since(self) -> float | None:
        """Since when no node has answered, although each was asked; None if one works."""
        return None if self._fleet.any_working() else self.failures.silent_since

    def has_node(self, name: str) -> bool:
        """Whether `name` takes part or is on standby, and is not lost."""
        node = self._fleet.get(name)
        return node is not None and not node.is_lost

    def next_tick(self, now: float) -> float | None:
        """When `tick` must be called if no event comes first; None if never."""
        tick = self._dispatcher.next_tick(now)
        at = min(self.failures.review_at, math.inf if tick is None else tick)
        if self._flights:
            at = min(at, max(now, self._look_at))
        return None if at == math.inf else at

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
        expects_live: bool = False,
    ) -> list[Instruction]:
        """A node joins or comes back. `ahead`: seconds of other work queued before the batch.

        A `standby` node gets work only if all others are lost, the batch is late, or in a trial.
        """
        known = self._fleet.get(name)
        if known is not None and not known.is_lost:
            return []
        tally = self.tallies.setdefault(name, Tally())
        node = BatchNode(name, cost, window, now + ahead, standby, tally, expects_live=expects_live)
        if known is not None:
            node.flights, node.busy_since = known.flights, known.busy_since
        self._fleet.put(node)
        self._dispatcher.rest(node)
        self._dispatcher.stir()
        self.failures.review(now)
        return self._dispatcher.dispatch(now)

    def start(self, now: float) -> list[Instruction]:
        """Send the first chunks. Call `node_up` for the initial nodes first."""
        self._late_at = now + _PLAN_TOLERANCE * self._expected_seconds
        self._look_at = now + hangs.LOOK_SECONDS
        return self._dispatcher.start(now)

    def node_lost(
        self,
        name: str,
        now: float,
        error: SollolError | None = None,
        *,
        may_return: bool = False,
    ) -> list[Instruction]:
        """A node gets no more work. Its chunks in flight may still be answered.

        may_return: it is down, and may be back in a moment. A node that gets checks is not lost
        then, and neither is the last one that works.
        """
        node = self._fleet.get(name)
        if node is None or node.is_lost:
            return []
        if not may_return or (self.failures.has_others(node) and not node.needs_check):
            self.failures.lose(node, error, now, may_return=may_return)
        elif not node.needs_check and error is not None:
            node.streak = FAILURES_TO_CHECK - 1
            self.failures.punish(node, Failure.NODE, error, now)
        self._dispatcher.stir()
        return self._dispatcher.dispatch(now)

    def tick(self, now: float) -> list[Instruction]:
        """Dispatch after time has passed: pauses may be over, chunks late, nodes may hang."""
        instructions: list[Instruction] = []
        if now >= self.failures.review_at:
            self.failures.review(now)
        if now >= self._look_at:
            self._look_at = now + hangs.LOOK_SECONDS
            hung = {node: what for node in self._fleet if (what := hangs.look(node, now))}
            self.failures.hangs(hung, now)
            for node, what in hung.items():
                if what == "replace":
                    instructions.append(self._take_back(hangs.newest(node), now))
                instructions.append(self._dispatcher.check(node, now))
            self._dispatcher.copy_from_hung()
        self._dispatcher.stir()
        return instructions + self._dispatcher.dispatch(now)

    def live(self, name: str, *, is_expected: bool) -> None:
        """A node may get live requests now, or not any more: its next chunks are cut for them."""
        self._fleet[name].expects_live = is_expected

    def began(self, chunk: Chunk, now: float) -> None:
        """The request of a chunk was sent. Before that it may have waited for a slot."""
        if chunk.id in self._flights:
            self._flights[chunk.id].begun_at = now

    def done(self, chunk: Chunk, now: float, cost: Cost) -> list[Instruction]:
        """A chunk was answered. `cost` is the node's updated cost."""
        flight = self._land(chunk, now)
        if flight is None:
            return []
        node = self._fleet[chunk.node]
        self.failures.recovered(node)
        node.cost = cost
        won = self._ledger.answer(chunk.items)
        if not chunk.is_check:
            node.convictions = 0
            node.tally.items += won
            if not won:
                node.tally.wasted += now - flight.sent_at
            self._note(flight, now, "done" if won else "late")
        self.failures.convict(self._evidence.answered(chunk.items, node.name), now)
        if self._evidence.held:
            self.failures.review(now)
        worked_from = max(flight.sent_at, node.last_done)
        node.last_done = now
        node.foresee(now)
        self._fleet.update(node)
        self._judge(node, chunk, worked_from, now)
        if self._late_at < math.inf:
            self._check_plan(now)
        instructions: list[Instruction] = []
        if chunk.is_check and node.flights:
            older = [each for each in node.flights.values() if each.sent_at <= flight.sent_at]
            instructions = [self._take_back(each, now) for each in older]
            self._dispatcher.stir()
        if chunk.is_copy or flight.is_copied:
            self._queue.discard(self._ledger.is_settled)
        if chunk.is_copy or flight.is_copied or not self._ledger.open:
            instructions += self._cancel_settled(now)
        return instructions + self._dispatcher.dispatch(now, node)

    def failed(
        self, chunk: Chunk, now: float, failure: Failure, error: SollolError
    ) -> list[Instruction]:
        """A chunk failed. Its items are retried, in smaller chunks if they may be the cause."""
        flight = self._land(chunk, now)
        if flight is None:
            return []
        if chunk.is_check:
            self._evidence.failed_check(chunk.node)
        else:
            self._note(flight, now, "failed")
        node = self._fleet[chunk.node]
        node.last_done = now
        node.tally.retries += 1
        node.foresee(now)
        items = self._ledger.unsettled(chunk.items)
        if chunk.is_copy or flight.is_copied:
            items = self._dispatcher.not_elsewhere(items)
        self.failures.punish(node, failure, error, now)
        self._dispatcher.rest(node)
        if items:
            is_alone = len(chunk.items) == 1
            self.failures.retry(items, failure, error, node.name, now, is_alone=is_alone)
        self._dispatcher.stir()
        return self._cancel_settled(now) + self._dispatcher.dispatch(now)

    def abandon(self, error: SollolError, now: float) -> list[Instruction]:
        """Settle every open item with `error` and cancel the chunks in flight."""
        self._evidence.held.clear()
        self._ledger.give_up_all(error)
        self._queue.drain()
        return self._cancel_settled(now)

    def _check_plan(self, now: float) -> None:
        """Activate the standby nodes if the batch will take much longer than planned."""
        if self._fleet.horizon(now, self._queue.tokens) > self._late_at:
            self._late_at = math.inf
            for node in self._fleet:
                if node.is_standby and not node.is_lost:
                    self.failures.set_standby(node, False)

    def _judge(self, node: BatchNode, chunk: Chunk, worked_from: float, now: float) -> None:
        """Begin, continue or end a trial of two nodes on one machine."""
        if chunk.is_check:
            return
        finding = self._trials.answered(node.name, chunk.tokens, worked_from, now)
        if finding is not None:
            if not finding.is_faster_together:
                self.failures.set_standby(self._fleet[finding.second], True)
        elif self._dispatcher.is_to_be_tried(node, now):
            under_way = [node.cost.seconds(flight.chunk.tokens) for flight in node.flights.values()]
            if max(under_way, default=0.0) <= 1.5 * TRIAL_CHUNK_SECONDS:
                second = self._fleet.get(self._trials.begin(node.cost, now))
                if second is None or second.is_lost:
                    self._trials.drop()
                else:
                    self.failures.set_standby(second, False)

    # Flights.

    def _land(self, chunk: Chunk, now: float) -> Flight | None:
        flight = self._flights.pop(chunk.id, None)
        if flight is not None:
            node = self._fleet[chunk.node]
            node.land(flight, now)
            self._dispatcher.rest(node)
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

    def _take_back(self, flight: Flight, now: float) -> Cancel:
        """Cancel a chunk whose answer is probably lost, and queue its items again."""
        chunk, node = flight.chunk, self._fleet[flight.chunk.node]
        self._land(chunk, now)
        node.foresee(now)
        self._fleet.update(node)
        if not chunk.is_check:
            self._note(flight, now, "cancelled")
            node.tally.wasted += now - flight.sent_at
            items = self._ledger.unsettled(chunk.items)
            if chunk.is_copy or flight.is_copied:
                items = self._dispatcher.not_elsewhere(items)
            self._queue.put_back(items)
        return Cancel(chunk)

    def _cancel_settled(self, now: float) -> list[Instruction]:
        """Cancel the chunks whose items have all been settled by other chunks."""
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
