"""An attempt at a live request, and others beside it while it is late.

There are two kinds of late. A little: an embedding takes longer than 95 % of the recent ones, and
is sent to a second node, as far as the hedging budget goes (`core.hedging`). Very: anything takes
ten times what was predicted, as on a node that hangs. That is as good as a failure, so it is sent
to another node out of the retry budget; but the first is not given up, for it may be a long chat on
a healthy node. The first answer counts, and who had more time for it and lost is told so: five of
those in a row open the breaker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from aiosollol.admission import Admission
from aiosollol.core.events import Hedged
from aiosollol.core.hedging import Hedging
from aiosollol.core.retry import RetryBudget
from aiosollol.core.routing import RouteRequest
from aiosollol.errors import NodeError
from aiosollol.hedge import HedgeTimer, Race
from aiosollol.loads import Spawn
from aiosollol.nodes import Node
from aiosollol.registry import ClusterState

VERY_LATE, LEAST_SECONDS = 10.0, 1.0
"""Times what was predicted, and seconds at least: answers of a chat differ by a factor of ten."""
_LOOK_AGAIN_SECONDS = 0.1  # when no other node has a place, or the budget is empty
_SUSPECT = 2.0
"""Times what other nodes take, after which a node on trial is no longer waited for."""

_Answer = TypeVar("_Answer")


class HedgingClient:
    """Sends live requests, and chases those that are late.

    admission: finds other nodes. budget: of retries, of which there are `max_retries` per request.
    """

    def __init__(
        self,
        registry: ClusterState,
        admission: Admission,
        hedging: Hedging,
        budget: RetryBudget,
        max_retries: int,
        spawn: Spawn,
    ) -> None:
        self._registry = registry
        self._admission = admission
        self._hedging = hedging
        self._budget = budget
        self._max_retries = max_retries
        self._hedger = HedgeTimer(registry.clock, spawn)

    async def send(
        self,
        request: RouteRequest,
        node: Node,
        attempt: Callable[[Node], Awaitable[_Answer]],
        tried: set[str],
        options: object,
    ) -> tuple[_Answer, Node]:
        """The first answer, and whose it is. Raises NodeError if `node` fails, and nobody else has
        an answer.

        request: the one that the attempts are made of. attempt: sends it to a node on which it has
        a place. tried: nodes that failed it, to which others are added.
        options: see `Node.is_cold`.
        """
        now = self._registry.clock()
        seconds = node.seconds(request)
        is_suspect = node.breaker.opens_at is not None or node.standing.is_due(now)
        if len(self._registry) < 2 or (seconds is None and not is_suspect):
            return await attempt(node), node
        is_cold = node.is_cold(request.model, options)
        load = node.load_seconds(request.model) if is_cold else 0.0
        predicted = node.ahead(now) + (seconds or 0.0) + load
        very_late_at = now + max(LEAST_SECONDS, VERY_LATE * predicted)
        hedges_after = None
        if is_suspect:
            # On trial with a caller's request, who is not to pay for it: this costs no budget, as
            # there is one such request per ejection.
            hedges_after = _SUSPECT * self._usual(request)
        elif request.kind == "embed":
            hedges_after = self._hedging.after(predicted, is_cold=is_cold)
        racing = [node]
        cold = {node.name} if is_cold else set()

        async def another() -> _Answer | None:
            now = self._registry.clock()
            race.due = now + _LOOK_AGAIN_SECONDS
            names = [each.name for each in racing]
            other = self._admission.try_place(request, (*tried, *names))
            if other is None:
                self._hedger.enter(race)
                return None
            # To be a little late is no reason to load a model.
            is_fit = now >= very_late_at or not other.is_cold(request.model, options)
            is_free = is_suspect and len(racing) == 1
            if not is_fit or not self._may(now >= very_late_at, is_free, len(racing)):
                other.leave()
                race.due = max(race.due, very_late_at)
                self._hedger.enter(race)
                return None
            racing.append(other)
            if other.is_cold(request.model, options):
                cold.add(other.name)
            patience = VERY_LATE * (other.ahead(now) + (other.seconds(request) or 0.0))
            race.due = now + max(LEAST_SECONDS, patience)
            if len(racing) <= self._max_retries:
                self._hedger.enter(race)
            self._registry.tell(Hedged(now, request.model, names[-1], other.name))
            try:
                answer = await attempt(other)
            except NodeError:
                tried.add(other.name)
                raise
            if race.is_decided:  # in the same moment
                return None
            for each in racing[: racing.index(other)]:
                has_failed = race.has_first_failed if each is node else each.name in tried
                # A node that loads the model is no slower than was to be expected.
                if not has_failed and each.name not in cold:
                    each.mark_outrun(request)
            winner.append(other)
            return answer

        due = very_late_at if hedges_after is None else min(now + hedges_after, very_late_at)
        race: Race[_Answer] = Race(due, another, self._registry.new_scope)
        winner: list[Node] = []
        self._hedger.enter(race)
        try:
            answer = await race.run_first(partial(attempt, node))
        finally:
            self._hedger.leave(race)
        if request.kind == "embed" and not is_suspect:
            self._hedging.observe(self._registry.clock() - now, predicted, is_cold=is_cold)
        return answer, winner[0] if winner else node

    def _may(self, is_very_late: bool, is_free: bool, sent: int) -> bool:
        """Whether a request that was sent `sent` times may be sent once more now."""
        if is_free:
            return True
        if is_very_late or sent > 1:
            return sent <= self._max_retries and self._budget.take(self._registry.clock())
        return self._hedging.take()

    def _usual(self, request: RouteRequest) -> float:
        """Seconds that it takes on the other nodes."""
        known = [node.seconds(request) for node in self._registry if node.breaker.opens_at is None]
        return min((each for each in known if each is not None), default=LEAST_SECONDS)
