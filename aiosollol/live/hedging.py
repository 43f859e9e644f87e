"""An attempt at a live request, and others beside it while it is late.

There are two kinds of late. A little: an embedding takes longer than 95 % of the recent ones, and
is sent to a second node, as far as the hedging budget goes (`core.routing.hedge_policy`). Very:
anything takes ten times what was predicted, as on a node that hangs. That is as good as a failure,
so it is sent to another node out of the retry budget; but the first is not given up, for it may be
a long chat on a healthy node. The first answer counts, and who had more time for it and lost is
told so: five of those in a row open the breaker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import anyio

from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.events import Hedged
from aiosollol.core.routing.hedge_policy import Hedging
from aiosollol.core.routing.retry import RetryBudget
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.errors import NodeError, SollolError
from aiosollol.live.admission import Admission
from aiosollol.live.model_loader import Spawn

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


AnswerT = TypeVar("AnswerT")


class Scope(Protocol):
    """What a task does inside its ``with`` ends at `cancel`: `anyio.CancelScope`, or the much
    cheaper one that asyncio has (`net.primitives.TaskScope`)."""

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None: ...
    def cancel(self) -> object: ...


class Race(Generic[AnswerT]):
    """A request that may be sent to several nodes, a new one whenever those before are late.

    another: sends it to one more, and is None if it should not be. due: when to do that next, by
    the clock of the hedger.
    """

    __slots__ = (
        "_answer",
        "_ended",
        "_first",
        "_is_over",
        "_others",
        "another",
        "due",
        "has_first_failed",
    )

    def __init__(
        self,
        due: float,
        another: Callable[[], Awaitable[AnswerT | None]],
        new_scope: Callable[[], Scope] = anyio.CancelScope,
    ) -> None:
        self.due = due
        self.another = another
        self._answer: list[AnswerT] = []
        self._first = new_scope()
        # Most races need none of these, and they are not cheap.
        self._others: set[anyio.CancelScope] | None = None
        self._ended: anyio.Event | None = None
        self._is_over = False
        self.has_first_failed = False

    @property
    def is_decided(self) -> bool:
        """Whether an answer is there, or all is over."""
        return self._is_over or bool(self._answer)

    async def run_first(self, send: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        """The answer of whichever is first. Raises NodeError if all fail: the first one's."""
        failure: NodeError | None = None
        try:
            with self._first:
                return await send()
        except NodeError as error:
            failure = error
            self.has_first_failed = True
            while self._others and not self._answer:  # one of them may still do it
                self._ended = anyio.Event()
                await self._ended.wait()
        finally:
            self._is_over = True
            for scope in self._others or ():
                scope.cancel()
        if self._answer:
            return self._answer[0]
        assert failure is not None
        raise failure

    async def run_another(self) -> None:
        """Send it once more, unless it was answered. Never raises for what a node does."""
        if self.is_decided:
            return
        scope = anyio.CancelScope()
        self._others = self._others or set()
        self._others.add(scope)
        try:
            with scope:
                answer = await self.another()
                if answer is not None and not self._answer:
                    self._answer.append(answer)
                    self._first.cancel()
        except SollolError:
            pass  # another may still do it; if none does, the first one's failure is told
        finally:
            self._others.discard(scope)
            if self._ended is not None:
                self._ended.set()


class HedgeTimer:
    """Starts the requests that are due. clock: seconds; spawn: runs a task of the pool."""

    def __init__(self, clock: Callable[[], float], spawn: Spawn) -> None:
        self._clock = clock
        self._spawn = spawn
        self._races: set[Race[object]] = set()
        self._is_watching = False
        self._looks_at = float("inf")
        self._sooner = anyio.Event()

    def enter(self, race: Race[AnswerT]) -> None:
        """Watch over a race until its next request is due. `leave` must follow."""
        self._races.add(race)  # type: ignore[arg-type]
        if not self._is_watching:
            self._is_watching = True
            self._spawn(self._watch(), "hedge late requests")
        elif race.due < self._looks_at:
            self._sooner.set()

    def leave(self, race: Race[AnswerT]) -> None:
        """The race is over."""
        self._races.discard(race)

    async def _watch(self) -> None:
        """Run while there is something to watch over, and a second more."""
        try:
            idle = 0
            while idle < 10:
                now = self._clock()
                for race in [race for race in self._races if race.due <= now]:
                    self._races.discard(race)
                    self._spawn(race.run_another(), "ask another node")
                self._looks_at = min((race.due for race in self._races), default=now + 0.1)
                idle = 0 if self._races else idle + 1
                self._sooner = anyio.Event()
                with anyio.move_on_after(max(0.0, self._looks_at - now)):
                    await self._sooner.wait()
        finally:
            self._is_watching = False
