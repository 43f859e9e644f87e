"""More requests for those whose first one is late: one timer for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

import anyio

from aiosollol.errors import NodeError, SollolError
from aiosollol.loads import Spawn

AnswerT = TypeVar("AnswerT")


class Scope(Protocol):
    """What a task does inside its ``with`` ends at `cancel`: `anyio.CancelScope`, or the much
    cheaper one that asyncio has (`asyncio_parts.TaskScope`)."""

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
