"""Hedging: a request that is late goes to another node as well, and the first answer counts.

There are two kinds of late. A little: an embedding takes longer than 95 % of the recent ones. It is
sent to a second node, as far as the hedging budget allows (`core.routing.hedge_policy`). Very: any
request takes ten times what was predicted, as on a node that hangs. That is as good as a failure,
so it is sent to another node out of the retry budget; but the first attempt goes on, for it may be
a long chat on a healthy node. A node that had more time and lost is marked as outrun: five of those
in a row open its breaker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import anyio

from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.events import Hedged
from aiosollol.core.routing.explain import Setback
from aiosollol.core.routing.hedge_policy import Hedging
from aiosollol.core.routing.retry import RetryBudget
from aiosollol.core.routing.strategies import RouteRequest
from aiosollol.core.stats import CallCounters
from aiosollol.errors import NodeError, SollolError
from aiosollol.live.admission import Admission
from aiosollol.live.model_loader import Spawn

VERY_LATE, LEAST_SECONDS = 10.0, 1.0
"""Times the predicted seconds, and a minimum in seconds: chat answers vary by a factor of ten."""
_LOOK_AGAIN_SECONDS = 0.1  # when no other node has a slot, or the budget is used up
_ON_TRIAL = 2.0
"""Times what other nodes take, after which a request on a node on trial is late."""

AnswerT = TypeVar("AnswerT")


class Hedger:
    """Decides which live requests may become late, and makes a race for each of them.

    admission: finds other nodes.
    policy: decides what is a little late, and how often to hedge.
    budget: the retry budget.
    max_retries: further attempts per request, at most.
    spawn: runs a task of the pool.
    calls: counts the hedges.
    """

    def __init__(
        self,
        cluster: ClusterState,
        admission: Admission,
        policy: Hedging,
        budget: RetryBudget,
        max_retries: int,
        spawn: Spawn,
        calls: CallCounters | None = None,
    ) -> None:
        self.cluster = cluster
        self.calls = CallCounters() if calls is None else calls
        self.admission = admission
        self.policy = policy
        self.max_retries = max_retries
        self.timer = HedgeTimer(cluster.clock, spawn)
        self._budget = budget

    def race(
        self,
        request: RouteRequest,
        node: Node,
        attempt: Callable[[Node], Awaitable[AnswerT]],
        tried: set[str],
        options: object,
    ) -> NodeRace[AnswerT] | None:
        """A race for `request`, to be run with the attempt on `node`; None if it cannot be late.

        attempt: sends the request to a node, on which it has a slot.
        tried: names of the nodes that failed it; those that fail during the race are added.
        options: see `Node.is_cold`.
        """
        now = self.cluster.clock()
        seconds = node.seconds(request)
        is_on_trial = node.breaker.opens_at is not None or node.standing.is_due(now)
        if len(self.cluster) < 2 or (seconds is None and not is_on_trial):
            return None
        return NodeRace(
            self, request, node, attempt, tried, options, now, seconds or 0.0, is_on_trial
        )

    def usual_seconds(self, request: RouteRequest) -> float:
        """Seconds that `request` takes on nodes with a closed breaker, the fastest of them."""
        known = [node.seconds(request) for node in self.cluster if node.breaker.opens_at is None]
        return min((each for each in known if each is not None), default=LEAST_SECONDS)

    def may_send(self, sent: int, *, is_very_late: bool) -> bool:
        """Whether the budgets allow one more attempt after `sent` attempts. Takes it from them."""
        if is_very_late or sent > 1:
            return sent <= self.max_retries and self._budget.take(self.cluster.clock())
        return self.policy.take()


class Race(Generic[AnswerT]):
    """One request, sent to another node whenever the attempts so far are late.

    timer: starts those other attempts.
    due: when to start the next one, by the clock of the timer.
    failures: of the attempts so far, in order.
    has_first_failed: whether the first attempt failed.
    """

    __slots__ = (
        "_answer",
        "_ended",
        "_first",
        "_is_over",
        "_others",
        "_timer",
        "due",
        "failures",
        "has_first_failed",
    )

    def __init__(
        self,
        timer: HedgeTimer,
        due: float,
        new_scope: Callable[[], Scope] = anyio.CancelScope,
    ) -> None:
        self.due = due
        self.failures: list[NodeError] = []
        self.has_first_failed = False
        self._timer = timer
        self._answer: list[AnswerT] = []
        self._first = new_scope()
        # Created on demand: most races need neither, and they are expensive.
        self._others: set[anyio.CancelScope] | None = None
        self._ended: anyio.Event | None = None
        self._is_over = False

    @property
    def is_decided(self) -> bool:
        """Whether there is an answer, or the race is over."""
        return self._is_over or bool(self._answer)

    async def another(self) -> AnswerT | None:
        """The answer of one more node; None if none should be asked. Raises NodeError."""
        raise NotImplementedError

    async def run(self, first: Awaitable[AnswerT]) -> AnswerT:
        """The first answer. Raises the NodeError of `first` if all attempts fail."""
        self._timer.enter(self)
        try:
            with self._first:
                return await first
        except NodeError as error:
            self.failures.append(error)
            self.has_first_failed = True
            while self._others and not self._answer:  # another attempt may still succeed
                self._ended = anyio.Event()
                await self._ended.wait()
            if not self._answer:
                raise
        finally:
            self._is_over = True
            self._timer.leave(self)
            for scope in self._others or ():
                scope.cancel()
        return self._answer.pop()  # a stream that its reader drops must not be kept alive here

    async def run_another(self) -> None:
        """Make one more attempt, unless the race is decided. Never raises for a failure."""
        if self.is_decided:
            return
        scope = anyio.CancelScope()
        self._others = self._others or set()
        self._others.add(scope)
        try:
            with scope:
                if self._take(await self.another()):
                    self._first.cancel()
        except NodeError as error:  # the race raises the first attempt's, if no other succeeds
            self.failures.append(error)
        except SollolError:
            pass
        finally:
            self._others.discard(scope)
            if self._ended is not None:
                self._ended.set()

    def _take(self, answer: AnswerT | None) -> bool:
        """Whether `answer` decides the race. A call of its own, so that no frame keeps it."""
        if answer is None or self.is_decided:
            return False
        self._answer.append(answer)
        return True


class NodeRace(Race[AnswerT]):
    """A race of attempts at a live request on nodes. `Hedger.race` makes it, with its arguments.

    now: when it begins.
    seconds: predicted for the request alone on `node`, 0 if unknown.
    is_on_trial: whether `node` is being probed after failures.
    winner: the node that answered.
    """

    __slots__ = (
        "_attempt",
        "_began_at",
        "_hedger",
        "_is_cold",
        "_is_on_trial",
        "_options",
        "_predicted",
        "_racing",
        "_request",
        "_tried",
        "_very_late_at",
        "winner",
    )

    def __init__(
        self,
        hedger: Hedger,
        request: RouteRequest,
        node: Node,
        attempt: Callable[[Node], Awaitable[AnswerT]],
        tried: set[str],
        options: object,
        now: float,
        seconds: float,
        is_on_trial: bool,
    ) -> None:
        is_cold = node.is_cold(request.model, options)
        load = node.load_seconds(request.model) if is_cold else 0.0
        predicted = node.ahead(now) + seconds + load
        very_late_at = now + max(LEAST_SECONDS, VERY_LATE * predicted)
        late_after = None
        if is_on_trial:
            # The caller whose request is the probe must not pay for it: this hedge costs no budget,
            # as there is one such request per ejection.
            late_after = _ON_TRIAL * hedger.usual_seconds(request)
        elif request.kind == "embed":
            late_after = hedger.policy.after(predicted, is_cold=is_cold)
        due = very_late_at if late_after is None else min(now + late_after, very_late_at)
        super().__init__(hedger.timer, due, hedger.cluster.new_scope)
        self.winner = node
        self._hedger = hedger
        self._request = request
        self._attempt = attempt
        self._tried = tried
        self._options = options
        self._began_at = now
        self._predicted = predicted
        self._very_late_at = very_late_at
        self._is_cold = is_cold
        self._is_on_trial = is_on_trial
        self._racing: list[tuple[Node, bool]] = [(node, is_cold)]

    def learn(self) -> None:
        """Learn from the answer how late answers are."""
        if self._request.kind == "embed" and not self._is_on_trial:
            hedger = self._hedger
            seconds = hedger.cluster.clock() - self._began_at
            hedger.policy.observe(seconds, self._predicted, is_cold=self._is_cold)

    def add_setbacks(self, setbacks: list[Setback]) -> None:
        """Add what preceded the answer: the attempts that failed, and the first one if it lost."""
        setbacks += map(Setback.of, self.failures)
        first, _ = self._racing[0]
        if self.winner is not first and all(each.node != first.name for each in setbacks):
            setbacks.append(Setback(first.name))

    async def another(self) -> AnswerT | None:
        """The answer of another node; None if none is fit or the budgets are used up."""
        other = self._next_node()
        if other is None:
            return None
        try:
            answer = await self._attempt(other)
        except NodeError:
            self._tried.add(other.name)
            raise
        if self.is_decided:  # in the same moment
            return None
        self._mark_outrun(other)
        self.winner = other
        return answer

    def _next_node(self) -> Node | None:
        """The node for the next attempt, with a slot taken on it, and when the one after is due."""
        hedger, request, racing = self._hedger, self._request, self._racing
        now = hedger.cluster.clock()
        is_very_late = now >= self._very_late_at
        names = [node.name for node, _ in racing]
        other = hedger.admission.try_place(request, (*self._tried, *names))
        if other is None:
            self._try_again_at(now + _LOOK_AGAIN_SECONDS)
            return None
        is_cold = other.is_cold(request.model, self._options)
        is_free = self._is_on_trial and len(racing) == 1
        # Being a little late does not justify a model load.
        if (is_cold and not is_very_late) or not (
            is_free or hedger.may_send(len(racing), is_very_late=is_very_late)
        ):
            other.leave(other.workload(request))
            self._try_again_at(max(now + _LOOK_AGAIN_SECONDS, self._very_late_at))
            return None
        racing.append((other, is_cold))
        if len(racing) <= hedger.max_retries:
            patience = VERY_LATE * (other.ahead(now) + (other.seconds(request) or 0.0))
            self._try_again_at(now + max(LEAST_SECONDS, patience))
        hedger.calls.hedges += 1
        hedger.cluster.tell(Hedged(now, request.model, names[-1], other.name))
        return other

    def _try_again_at(self, due: float) -> None:
        self.due = due
        self._timer.enter(self)

    def _mark_outrun(self, winner: Node) -> None:
        """Mark the nodes that had more time than `winner`, unless they failed or loaded a model."""
        first, _ = self._racing[0]
        for node, was_cold in self._racing:
            if node is winner:
                return
            has_failed = self.has_first_failed if node is first else node.name in self._tried
            # A node that loads the model is no slower than expected.
            if not has_failed and not was_cold:
                node.mark_outrun(self._request)


class Scope(Protocol):
    """A scope whose `cancel` ends the work inside its ``with``.

    `anyio.CancelScope`, or the much cheaper `net.primitives.TaskScope` for asyncio.
    """

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None: ...
    def cancel(self) -> object: ...


class HedgeTimer:
    """Starts the attempts that are due: one timer for all races.

    clock: returns seconds.
    spawn: runs a task of the pool.
    """

    def __init__(self, clock: Callable[[], float], spawn: Spawn) -> None:
        self._clock = clock
        self._spawn = spawn
        self._races: set[Race[Any]] = set()
        self._is_watching = False
        self._looks_at = float("inf")
        self._sooner = anyio.Event()

    def enter(self, race: Race[Any]) -> None:
        """Start the next attempt of a race when it is due. Pair with `leave`."""
        self._races.add(race)
        if not self._is_watching:
            self._is_watching = True
            self._spawn(self._watch(), "hedge late requests")
        elif race.due < self._looks_at:
            self._sooner.set()

    def leave(self, race: Race[Any]) -> None:
        """Forget a race that is over."""
        self._races.discard(race)

    async def _watch(self) -> None:
        """Run while there are races, and a second more."""
        try:
            idle = 0
            while idle < 10:
                now = self._clock()
                self._start_due(now)
                self._looks_at = min((race.due for race in self._races), default=now + 0.1)
                idle = 0 if self._races else idle + 1
                self._sooner = anyio.Event()
                with anyio.move_on_after(max(0.0, self._looks_at - now)):
                    await self._sooner.wait()
        finally:
            self._is_watching = False

    def _start_due(self, now: float) -> None:
        for race in [race for race in self._races if race.due <= now]:
            self._races.discard(race)
            self._spawn(race.run_another(), "ask another node")
