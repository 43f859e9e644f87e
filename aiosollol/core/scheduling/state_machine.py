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
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aiosollol.core.blame import may_pass
from aiosollol.core.report import Outcome, Slice
from aiosollol.core.routing.retry import Failure
from aiosollol.core.scheduling.batch_nodes import (
    FAILURES_TO_CHECK,
    FAILURES_TO_DISREGARD,
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
from aiosollol.core.scheduling.work_queue import ItemLedger, WorkQueue
from aiosollol.errors import BadRequest, SollolError

if TYPE_CHECKING:
    from random import Random

CONVICTIONS_TO_LOSE = 3
"""How often other nodes must answer what a node failed, in a row, until it is lost."""
_PLAN_TOLERANCE = 1.5


class BatchState:
    """A batch of items with known token counts, over nodes that come and go."""

    def __init__(
        self,
        tokens: Sequence[float],
        options: ScheduleOptions | None = None,
        trials: Iterable[tuple[str, str]] = (),
        *,
        expected_seconds: float = math.inf,
        rng: Random | None = None,
    ) -> None:
        """tokens: estimated tokens of each item.

        trials: pairs of nodes to measure for whether they are faster together.
        expected_seconds: planned duration. If the batch takes much longer, standby nodes join.
        rng: for the jitter of pauses; None for none.
        """
        self._options = options or ScheduleOptions()
        self._queue = WorkQueue(tokens)
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
        self._rng = rng
        self._silent_since: float | None = None
        self._flights = self._dispatcher.flights
        self.last_errors: dict[str, SollolError] = {}
        self.wrong_refusals: list[str] = []
        self.tallies: dict[str, Tally] = {}
        self.slices: list[Slice] = []
        self.splits = 0
        self._expected_seconds = expected_seconds
        self._late_at = math.inf

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
        return None if self._fleet.any_working() else self._silent_since

    def has_node(self, name: str) -> bool:
        """Whether `name` takes part or is on standby, and is not lost."""
        node = self._fleet.get(name)
        return node is not None and not node.is_lost

    def next_tick(self, now: float) -> float | None:
        """When `tick` must be called if no event comes first; None if never."""
        return self._dispatcher.next_tick(now)

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
        """A node joins or comes back. `ahead`: seconds of other work queued before the batch.

        A `standby` node gets work only if all others are lost, the batch is late, or in a trial.
        """
        known = self._fleet.get(name)
        if known is not None and not known.is_lost:
            return []
        tally = self.tallies.setdefault(name, Tally())
        node = BatchNode(name, cost, window, now + ahead, standby, tally)
        if known is not None:
            node.flights = known.flights
            node.busy_since = known.busy_since
        self._fleet.put(node)
        self._dispatcher.rest(node)
        self._dispatcher.stir()
        self._review()
        return self._dispatcher.dispatch(now)

    def start(self, now: float) -> list[Instruction]:
        """Send the first chunks. Call `node_up` for the initial nodes first."""
        self._late_at = now + _PLAN_TOLERANCE * self._expected_seconds
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

        may_return: it is down, and may be back in a moment. If no other node works, it is not lost
        but gets checks.
        """
        node = self._fleet.get(name)
        if node is None or node.is_lost:
            return []
        if may_return and not self._has_others(node):
            if not node.needs_check and error is not None:
                self.last_errors[name] = error
                node.streak = FAILURES_TO_CHECK - 1
                self._punish(node, Failure.NODE, error, now)
        else:
            self._lose(node, error, now)
        self._dispatcher.stir()
        return self._dispatcher.dispatch(now)

    def tick(self, now: float) -> list[Instruction]:
        """Dispatch after time has passed: pauses may be over, chunks may be late."""
        self._dispatcher.stir()
        return self._dispatcher.dispatch(now)

    def done(self, chunk: Chunk, now: float, cost: Cost) -> list[Instruction]:
        """A chunk was answered. `cost` is the node's updated cost."""
        flight = self._land(chunk, now)
        if flight is None:
            return []
        node = self._fleet[chunk.node]
        self._recovered(node)
        node.cost = cost
        won = self._ledger.answer(chunk.items)
        if not chunk.is_check:
            node.convictions = 0
            node.tally.items += won
            node.tally.tokens += chunk.tokens
            if not won:
                node.tally.wasted += now - flight.sent_at
            self._note(flight, now, "done" if won else "late")
        self._convict(self._evidence.answered(chunk.items, node.name), now)
        if self._evidence.held:
            self._review()
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
        return instructions + self._dispatcher.dispatch(now, node)

    def failed(
        self, chunk: Chunk, now: float, failure: Failure, error: SollolError
    ) -> list[Instruction]:
        """A chunk failed. Its items are retried, in smaller chunks if they may be the cause."""
        flight = self._land(chunk, now)
        if flight is None:
            return []
        if not chunk.is_check:
            self._note(flight, now, "failed")
        node = self._fleet[chunk.node]
        node.last_done = now
        node.tally.retries += 1
        node.foresee(now)
        self.last_errors[node.name] = error
        items = self._ledger.unsettled(chunk.items)
        if chunk.is_copy or flight.is_copied:
            items = self._not_elsewhere(items)
        self._punish(node, failure, error, now)
        self._dispatcher.rest(node)
        if items:
            self._retry(items, failure, error, node.name)
        self._dispatcher.stir()
        return self._cancel_settled(now) + self._dispatcher.dispatch(now)

    def abandon(self, error: SollolError, now: float) -> list[Instruction]:
        """Settle every open item with `error` and cancel the chunks in flight."""
        self._evidence.held.clear()
        self._ledger.give_up_all(error)
        self._queue.drain()
        return self._cancel_settled(now)

    # Failures.

    def _punish(self, node: BatchNode, failure: Failure, error: SollolError, now: float) -> None:
        node.streak += 1
        if self._silent_since is None:
            self._silent_since = now
        if failure is Failure.MODEL:
            self._lose(node, error, now)
        elif failure is Failure.NODE and self._has_others(node):
            self._lose(node, error, now)  # a probe will find it back
        else:
            node.retry_at = now + self._pause(node, error)
            self._fleet.update(node)
            self._activate_standby()
            if node.streak in (FAILURES_TO_CHECK, FAILURES_TO_DISREGARD):
                self._review()

    def _pause(self, node: BatchNode, error: SollolError) -> float:
        """Seconds without requests after a failure: growing, with jitter."""
        options, is_passing = self._options, may_pass(error)
        if not is_passing and node.streak <= FAILURES_TO_CHECK:
            return 0.0  # an item may be the cause: check the node at once
        is_alone = not self._fleet.any_working()
        longest = options.longest_pause if is_passing or is_alone else options.longest_refusal
        pause = min(longest, options.first_pause * 2.0 ** min(node.streak - 1, 16))
        if self._rng is not None:
            pause *= self._rng.uniform(0.5, 1.0)
        return max(pause, getattr(error, "retry_after", None) or 0.0)

    def _has_others(self, node: BatchNode) -> bool:
        """Whether another node works."""
        return any(other.is_working for other in self._fleet if other is not node)

    def _recovered(self, node: BatchNode) -> None:
        """A node answered."""
        self._silent_since = None
        if node.streak:
            node.streak, node.retry_at = 0, 0.0
            self._fleet.update(node)
            self._dispatcher.stir()

    def _convict(self, names: Iterable[str], now: float) -> None:
        """Another node answered what these nodes had failed."""
        for name in names:
            node = self._fleet[name]
            node.convictions += 1
            error = self.last_errors[name]
            if isinstance(error, BadRequest):
                self.wrong_refusals.append(name)
            if node.convictions >= CONVICTIONS_TO_LOSE and not may_pass(error):
                self._lose(node, error, now)

    def _retry(
        self, items: Sequence[int], failure: Failure, error: SollolError, culprit: str
    ) -> None:
        if failure not in (Failure.ANSWER, Failure.INPUT):
            self._queue.put_back(items)  # this says nothing about the items
            return
        self._evidence.failed(items, culprit, error)
        if len(items) == 1:
            self._decide(items[0])
            return
        is_again = self._ledger.attempt(items) >= 2 or failure is Failure.INPUT
        avoid = self._avoid(items, culprit)
        if is_again and self._fleet.any_working():
            self.splits += 1
            middle = len(items) // 2
            self._queue.put_back(items[:middle], avoid=avoid)
            self._queue.put_back(items[middle:], avoid=avoid)
        else:
            self._queue.put_back(items, avoid=avoid)

    def _avoid(self, items: Sequence[int], culprit: str) -> set[str]:
        """The nodes that must not get several failed items: as many as possible."""
        culprits = self._evidence.culprits(items)
        able = {node.name for node in self._fleet if node.is_active}
        if not able <= culprits:
            return culprits
        return {culprit} if able != {culprit} else set()

    def _decide(self, item: int) -> None:
        """Give up an item that failed alone, queue it for other nodes, or hold it back."""
        able = self._fleet.able()
        verdict = self._evidence.judge(item, able)
        if verdict.fault == "item":
            self._ledger.give_up(item, self._evidence.error_of(item))
            self._evidence.gave_up(item)
            return
        nodes = [self._fleet[name] for name in verdict.ask]
        if nodes and all(node.is_standby for node in nodes):
            self._set_standby(nodes[0], False)
        if any(node.is_working for node in nodes):
            self._queue.put_back([item], avoid=set(self._fleet.names()).difference(verdict.ask))
        else:
            self._evidence.held.append(item)

    def _review(self) -> None:
        """Decide again about items that failed alone: nodes answered, failed, joined or left."""
        held, self._evidence.held = self._evidence.held, []
        held += self._queue.forget_culprits(self._fleet.working(), self._evidence.is_suspect)
        for item in self._ledger.unsettled(held):
            self._decide(item)
        self._dispatcher.stir()

    def _not_elsewhere(self, items: Sequence[int]) -> list[int]:
        """`items` without those that another chunk in flight or the queue still holds."""
        elsewhere = self._queue.returned()
        for flight in self._flights.values():
            elsewhere.update(flight.chunk.items)
        return [item for item in items if item not in elsewhere]

    def _lose(self, node: BatchNode, error: SollolError | None, now: float) -> None:
        if error is not None:
            self.last_errors[node.name] = error
        if node.is_lost:
            return
        node.is_lost = True
        if self._silent_since is None:
            self._silent_since = now
        self._fleet.update(node)
        self._dispatcher.rest(node)
        if self._trials.concerns(node.name):
            self._trials.drop()
        self._activate_standby()
        self._review()

    def _activate_standby(self) -> None:
        """Let a standby node work if no other node does."""
        if not self._fleet.any_working():
            spare = next(
                (node for node in self._fleet if not node.is_lost and node.is_standby), None
            )
            if spare is not None:
                self._set_standby(spare, False)

    def _set_standby(self, node: BatchNode, is_standby: bool) -> None:
        node.is_standby = is_standby
        self._fleet.update(node)
        self._dispatcher.rest(node)
        self._dispatcher.stir()

    def _check_plan(self, now: float) -> None:
        """Activate the standby nodes if the batch will take much longer than planned."""
        if self._fleet.horizon(now, self._queue.tokens) > self._late_at:
            self._late_at = math.inf
            for node in self._fleet:
                if node.is_standby and not node.is_lost:
                    self._set_standby(node, False)

    # Nodes on one machine.

    def _judge(self, node: BatchNode, chunk: Chunk, worked_from: float, now: float) -> None:
        """Begin, continue or end a trial of two nodes on one machine."""
        if chunk.is_check:
            return
        finding = self._trials.answered(node.name, chunk.tokens, worked_from, now)
        if finding is not None:
            if not finding.is_faster_together:
                self._set_standby(self._fleet[finding.second], True)
        elif self._dispatcher.is_to_be_tried(node, now):
            under_way = [node.cost.seconds(flight.chunk.tokens) for flight in node.flights.values()]
            if max(under_way, default=0.0) <= 1.5 * TRIAL_CHUNK_SECONDS:
                second = self._fleet.get(self._trials.begin(node.cost, now))
                if second is None or second.is_lost:
                    self._trials.drop()
                else:
                    self._set_standby(second, False)

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
