"""Second requests for live embeddings whose first one is late: one timer for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

from aiosollol.errors import NodeError
from aiosollol.loads import Spawn

AnswerT = TypeVar("AnswerT")


class Race(Generic[AnswerT]):
    """A request that may be run twice. second: sends it again, and is None if it should not be.

    due: when to do that, by the clock of the hedger.
    """

    __slots__ = ("_answer", "_first", "_is_over", "_runs", "_second", "due", "second")

    def __init__(self, due: float, second: Callable[[], Awaitable[AnswerT | None]]) -> None:
        self.due = due
        self.second = second
        self._answer: list[AnswerT] = []
        self._first = anyio.CancelScope()
        self._second = anyio.CancelScope()
        self._runs: anyio.Event | None = None
        self._is_over = False

    async def run_first(self, send: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        """The answer of whichever is first. Raises NodeError if both fail: the first one's."""
        failure: NodeError | None = None
        try:
            with self._first:
                return await send()
        except NodeError as error:
            failure = error
            if self._runs is not None:  # the second may still do it
                await self._runs.wait()
        finally:
            self._is_over = True
            self._second.cancel()
        if self._answer:
            return self._answer[0]
        assert failure is not None
        raise failure

    async def run_second(self) -> None:
        """Send it again, unless it was answered meanwhile. Never raises for what a node does."""
        if self._is_over:
            return
        self._runs = anyio.Event()
        try:
            with self._second:
                answer = await self.second()
                if answer is not None:
                    self._answer.append(answer)
                    self._first.cancel()
        except NodeError:
            pass  # the first may still do it
        finally:
            self._runs.set()


class Hedger:
    """Starts the second requests that are due. clock: seconds; spawn: runs a task of the pool."""

    def __init__(self, clock: Callable[[], float], spawn: Spawn) -> None:
        self._clock = clock
        self._spawn = spawn
        self._races: set[Race[object]] = set()
        self._is_watching = False
        self._looks_at = float("inf")
        self._sooner = anyio.Event()

    def enter(self, race: Race[AnswerT]) -> None:
        """Watch over a race. `leave` must follow."""
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
                    self._spawn(race.run_second(), "ask a second node")
                self._looks_at = min((race.due for race in self._races), default=now + 0.1)
                idle = 0 if self._races else idle + 1
                self._sooner = anyio.Event()
                with anyio.move_on_after(max(0.0, self._looks_at - now)):
                    await self._sooner.wait()
        finally:
            self._is_watching = False
