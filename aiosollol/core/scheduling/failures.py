"""What a batch does when nodes fail: pause or lose nodes, and send items again or give them up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aiosollol.core.blame import may_pass
from aiosollol.core.routing.retry import Failure, backoff
from aiosollol.core.scheduling.batch_nodes import (
    FAILURES_TO_CHECK,
    FAILURES_TO_DISREGARD,
    BatchNode,
    BatchNodes,
)
from aiosollol.core.scheduling.colocation import ColocationTrials
from aiosollol.core.scheduling.dispatcher import Dispatcher, ScheduleOptions
from aiosollol.core.scheduling.evidence import Evidence
from aiosollol.core.scheduling.work_queue import ItemLedger, WorkQueue
from aiosollol.errors import BadRequest, ResponseError, SollolError

if TYPE_CHECKING:
    from random import Random

CONVICTIONS_TO_LOSE = 3
"""How often other nodes must answer what a node failed, in a row, until it is lost."""


class Failures:
    """Handles the failures of a batch, for `BatchState`.

    last_errors: the last failure of each node, by name.
    wrong_refusals: nodes, once for each request that they refused as invalid and others answered.
    splits: number of failed chunks that were halved.
    silent_since: since when no node works; None while one does.
    review_at: when items have waited long enough for a node that is down; infinity if none waits.
    rng: for the jitter of pauses; None for none.
    """

    def __init__(
        self,
        options: ScheduleOptions,
        queue: WorkQueue,
        fleet: BatchNodes,
        ledger: ItemLedger,
        trials: ColocationTrials,
        evidence: Evidence,
        dispatcher: Dispatcher,
        rng: Random | None,
    ) -> None:
        self._options = options
        self._queue = queue
        self._fleet = fleet
        self._ledger = ledger
        self._trials = trials
        self._evidence = evidence
        self._dispatcher = dispatcher
        self._rng = rng
        self.last_errors: dict[str, SollolError] = {}
        self.wrong_refusals: list[str] = []
        self.splits = 0
        self.silent_since: float | None = None
        self.review_at = math.inf

    @property
    def refusal(self) -> BadRequest | None:
        """The error of a request that every node refuses as invalid, whatever its texts."""
        if self._evidence.has_answers:
            return None  # the request is right
        names = [node.name for node in self._fleet if not node.is_lost]
        errors = [self.last_errors.get(name) for name in names]
        last = errors[-1] if errors else None
        if isinstance(last, BadRequest) and all(isinstance(each, BadRequest) for each in errors):
            return last if all(map(self._evidence.needs_recovery, names)) else None
        return None

    def punish(self, node: BatchNode, failure: Failure, error: SollolError, now: float) -> None:
        """A request of `node` failed."""
        node.streak += 1
        node.failing_since = min(node.failing_since, now)
        node.is_hung = False
        self.last_errors[node.name] = error
        if failure is Failure.MODEL:
            self.lose(node, error, now)
        elif failure is Failure.NODE and self.has_others(node):
            self.lose(node, error, now, may_return=True)  # a probe will find it back
        else:
            node.retry_at = now + self._pause(node, error)
            self._fleet.update(node)
            self._find_replacement()
            self._note_silence(now)
            if node.streak in (FAILURES_TO_CHECK, FAILURES_TO_DISREGARD):
                self.review(now)

    def _pause(self, node: BatchNode, error: SollolError) -> float:
        """Seconds without requests after a failure: growing, with jitter."""
        options, is_passing = self._options, may_pass(error)
        if not is_passing and node.streak <= FAILURES_TO_CHECK:
            return 0.0  # an item may be the cause: check the node at once
        is_alone = not self._fleet.any_working()
        longest = options.longest_pause if is_passing or is_alone else options.longest_refusal
        pause = backoff(node.streak - 1, self._rng, longest=longest, first=options.first_pause)
        asked = error.retry_after if isinstance(error, ResponseError) else None
        return max(pause, asked or 0.0)

    def has_others(self, node: BatchNode) -> bool:
        """Whether another node works."""
        return any(other.is_working for other in self._fleet if other is not node)

    def recovered(self, node: BatchNode) -> None:
        """A node answered."""
        self.silent_since = None
        if node.streak or node.is_hung:
            node.streak, node.retry_at, node.is_hung = 0, 0.0, False
            node.failing_since = math.inf
            self._fleet.update(node)
            self._dispatcher.stir()

    def convict(self, names: Iterable[str], now: float) -> None:
        """Another node answered what these nodes had failed."""
        for name in names:
            node = self._fleet[name]
            node.convictions += 1
            error = self.last_errors[name]
            if isinstance(error, BadRequest):
                self.wrong_refusals.append(name)
            if node.convictions >= CONVICTIONS_TO_LOSE and not may_pass(error):
                self.lose(node, error, now)

    def retry(
        self,
        items: Sequence[int],
        failure: Failure,
        error: SollolError,
        culprit: str,
        now: float,
        *,
        is_alone: bool,
    ) -> None:
        """Send the items of a failed request again, or give up one that failed alone.

        is_alone: whether the request had nothing but one item.
        """
        if failure not in (Failure.ANSWER, Failure.INPUT):
            self._queue.put_back(items)  # this says nothing about the items
            return
        self._evidence.failed(items, culprit, error, is_alone=is_alone)
        if is_alone:
            self._decide(items[0], now)
            return
        is_again = self._ledger.attempt(items) >= 2 or failure is Failure.INPUT
        avoid = self._avoid(items, culprit)
        if is_again and len(items) > 1 and self._fleet.any_working():
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

    def _decide(self, item: int, now: float) -> None:
        """Give up an item that failed alone, queue it for other nodes, or hold it back."""
        absent = self._fleet.absent(now, self._options.return_patience)
        verdict = self._evidence.judge(item, self._fleet.able(), absent)
        if verdict.fault == "item":
            self._ledger.give_up(item, self._evidence.error_of(item))
            self._evidence.gave_up(item)
            return
        nodes = [self._fleet[name] for name in verdict.ask]
        if nodes and all(node.is_standby for node in nodes):
            self.set_standby(nodes[0], False)
        if verdict.fault == "awaiting":
            self.review_at = min(self.review_at, *absent.values())
        if any(node.is_working for node in nodes):
            self._queue.put_back([item], avoid=set(self._fleet.names()).difference(verdict.ask))
        else:
            self._evidence.held.append(item)

    def review(self, now: float) -> None:
        """Decide again about items that failed alone: nodes answered, failed, joined or left."""
        self.review_at = math.inf
        held, self._evidence.held = self._evidence.held, []
        held += self._queue.forget_culprits(self._fleet.working(), self._evidence.is_suspect)
        for item in self._ledger.unsettled(held):
            self._decide(item, now)
        self._dispatcher.stir()

    def lose(
        self,
        node: BatchNode,
        error: SollolError | None,
        now: float,
        *,
        may_return: bool = False,
    ) -> None:
        """Send no more work to `node`. may_return: it is down, so that it may be checked."""
        if error is not None:
            self.last_errors[node.name] = error
        if node.is_lost:
            return
        node.is_lost, node.may_return = True, may_return
        node.failing_since = min(node.failing_since, now)
        self._fleet.update(node)
        self._dispatcher.rest(node)
        if self._trials.concerns(node.name):
            self._trials.drop()
        self._find_replacement()
        self._note_silence(now)
        self.review(now)

    def hangs(self, nodes: Iterable[BatchNode], now: float) -> None:
        """The answers of these nodes are far too late: leave work to others."""
        for node in nodes:
            node.is_hung = True
            self._fleet.update(node)
        self.review(now)

    def _note_silence(self, now: float) -> None:
        if self._fleet.any_working():
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = now

    def _find_replacement(self) -> None:
        """Where no node works: let one on standby do so, or check those that are down."""
        if self._fleet.any_working():
            return
        for node in self._fleet:
            if node.is_standby and not node.is_lost:
                self.set_standby(node, False)
                return
        for node in self._fleet:
            if node.may_return:
                node.is_lost = node.may_return = False
                node.streak = max(node.streak, FAILURES_TO_CHECK)
                self._dispatcher.rest(node)

    def set_standby(self, node: BatchNode, is_standby: bool) -> None:
        node.is_standby = is_standby
        self._fleet.update(node)
        self._dispatcher.rest(node)
        self._dispatcher.stir()
