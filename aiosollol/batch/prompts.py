"""`PromptStream`: replies to any number of prompts, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any, Generic, NamedTuple

import anyio

from aiosollol.core.report import ReplyReport
from aiosollol.errors import (
    InvalidInput,
    ModelNotFound,
    PoolClosed,
    PoolSaturated,
    SollolError,
    first_of,
)
from aiosollol.live.streaming import Part, token_counts

_AHEAD = 4
"""Prompts in flight or answered, but not delivered, as a multiple of the window."""
_LEAST_AHEAD = 64
_LOOK_SECONDS = 1.0  # between looks at the window, which grows when nodes come
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
_QUEUE_SECONDS = 3600.0
"""Seconds that a prompt waits while other callers fill the pool's queue."""
_FATAL = (ModelNotFound, PoolClosed)  # every further prompt would fail alike


class Answered(NamedTuple, Generic[Part]):
    """A reply, and the name of the node that gave it."""

    reply: Part
    node: str


class PromptStream(Generic[Part]):
    """An async iterator of replies. To stop early, use `aclose` or ``async with``.

    The source is read only as far ahead as needed to keep the nodes busy, and no faster than the
    replies are consumed. While other callers fill the pool's queue, prompts wait instead of failing
    with PoolSaturated.

    index: position of the prompt whose reply was delivered last; -1 before the first.
    errors: errors by position, of prompts without a reply; None was delivered for them.
    """

    def __init__(
        self,
        source: Iterable[Any] | AsyncIterable[Any],
        ask: Callable[[Any], Awaitable[Answered[Part]]],
        window: Callable[[], int],
        clock: Callable[[], float],
        *,
        is_ordered: bool,
        stops_at_error: bool,
        on_progress: Callable[[int], object] | None = None,
    ) -> None:
        """source: the prompts. Raises InvalidInput if it is a string, or not iterable.

        ask: sends one prompt. window: how many requests the nodes can work on now.
        is_ordered: deliver replies in the order of their prompts, else as they come.
        stops_at_error: raise the error of a prompt instead of delivering None.
        on_progress: called with the number of prompts that have a reply or an error.
        """
        if isinstance(source, str | bytes) or not isinstance(source, Iterable | AsyncIterable):
            raise InvalidInput(f"prompts must be an iterable, not {type(source).__name__}")
        self.index = -1
        self.errors: dict[int, SollolError] = {}
        self._source = source
        self._ask = ask
        self._window = window
        self._clock = clock
        self._is_ordered = is_ordered
        self._stops_at_error = stops_at_error
        self._on_progress = on_progress
        self._replies: dict[int, Part | None] = {}  # that are not delivered yet
        self._taken = 0
        self._settled = 0
        self._delivered = 0
        self._came = asyncio.Event()  # set when a reply comes, and at the end
        self._room = asyncio.Event()  # set when another prompt may be sent
        self._feeder: asyncio.Task[None] | None = None
        self._source_error: Exception | None = None
        self._is_over = False
        self._ended_by: BaseException | None = None
        self._began = self._ended = clock()
        self._prompt_tokens = 0
        self._reply_tokens = 0
        self._nodes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<PromptStream, {self._delivered} delivered, {len(self.errors)} errors>"

    @property
    def report(self) -> ReplyReport:
        """How many prompts were answered so far, by which nodes, and at which rate."""
        return ReplyReport(
            replies=self._settled - len(self.errors),
            failed=len(self.errors),
            seconds=(self._ended if self._is_over else self._clock()) - self._began,
            prompt_tokens=self._prompt_tokens,
            reply_tokens=self._reply_tokens,
            nodes=dict(self._nodes),
        )

    def __aiter__(self) -> PromptStream[Part]:
        return self

    async def __anext__(self) -> Part | None:
        try:
            return await self._next()
        except BaseException:
            await self.aclose()
            raise

    async def __aenter__(self) -> PromptStream[Part]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, error: BaseException | None = None) -> None:
        """Stop reading, and cancel the requests in flight. Idempotent.

        A task that waits for a reply gets `error`, or the end of the stream.
        """
        if not self._is_over:
            self._is_over = True
            self._ended = self._clock()
            self._ended_by = error
        self._replies.clear()
        self._came.set()
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait([self._feeder])

    async def _next(self) -> Part | None:
        if self._feeder is None and not self._is_over:
            self._began = self._clock()
            self._feeder = asyncio.create_task(self._feed(), name="send prompts")
        while not self._is_over:
            index = self._delivered if self._is_ordered else next(iter(self._replies), -1)
            if index in self._replies:
                return self._deliver(index)
            assert self._feeder is not None
            if self._feeder.done():
                self._feeder.result()
                # The source's error comes after the replies to the prompts before it.
                raise self._source_error or StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        raise self._ended_by or StopAsyncIteration

    def _deliver(self, index: int) -> Part | None:
        error = self.errors.get(index)
        if error is not None and (self._stops_at_error or isinstance(error, _FATAL)):
            raise error
        self._delivered += 1
        self._room.set()
        self.index = index
        return self._replies.pop(index)

    # Sending: one task reads the source. The requests are its children, and end with it.

    async def _feed(self) -> None:
        try:
            async with asyncio.TaskGroup() as requests:
                try:
                    async with aclosing(_prompts(self._source)) as prompts:
                        await self._wait_for_room()
                        async for prompt in prompts:
                            requests.create_task(self._answer(self._taken, prompt))
                            self._taken += 1
                            await self._wait_for_room()
                except Exception as error:  # the caller's
                    self._source_error = error
        except BaseExceptionGroup as group:  # of `on_progress`: errors of prompts are kept
            raise first_of(group) from None
        finally:
            self._came.set()

    async def _wait_for_room(self) -> None:
        while True:
            window = max(1, self._window())
            in_flight = self._taken - self._settled
            undelivered = self._taken - self._delivered
            if in_flight < window and undelivered < max(_LEAST_AHEAD, _AHEAD * window):
                return
            self._room.clear()
            with anyio.move_on_after(_LOOK_SECONDS):
                await self._room.wait()

    async def _answer(self, index: int, prompt: object) -> None:
        reply = None
        try:
            reply, node = await self._ask_patiently(prompt)
        except SollolError as error:
            self.errors[index] = error
        else:
            read, written = token_counts(reply)
            self._prompt_tokens += read
            self._reply_tokens += written
            self._nodes[node] += 1
        self._replies[index] = reply
        self._settled += 1
        self._came.set()
        self._room.set()
        if self._on_progress is not None:
            self._on_progress(self._settled)

    async def _ask_patiently(self, prompt: object) -> Answered[Part]:
        until = self._clock() + _QUEUE_SECONDS
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._ask(prompt)
            except PoolSaturated:
                if self._clock() >= until:
                    raise
            await anyio.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)


async def _prompts(source: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """The prompts of `source`. An async generator is closed with it."""
    if not isinstance(source, AsyncIterable):
        for prompt in source:
            yield prompt
        return
    try:
        async for prompt in source:
            yield prompt
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()
