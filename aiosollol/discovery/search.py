"""`Search`: a search for nodes that can be iterated over, left early, and asked what it did."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType

from aiosollol.core.discovered import Discovered
from aiosollol.core.networks import Skipped
from aiosollol.discovery.hunt import Browse, Enough, SearchRun
from aiosollol.discovery.interfaces import NetworkNeighbourhood, read_surroundings
from aiosollol.discovery.mdns import browse
from aiosollol.discovery.options import SearchOptions
from aiosollol.discovery.probe import Sockets
from aiosollol.discovery.trust import Trust

_log = logging.getLogger("aiosollol.discovery")


class Search:
    """A search for nodes: an async iterable of `Discovered`, and an async context manager.

    It begins with the first step of the iteration, or on entering. Leaving the block, or the
    iteration where there is no block, ends it and closes every socket.

    skipped: the networks that were not swept, and why; known before the first node.
    addresses: how many were asked. open_at_most: sockets open at once.
    seconds: how long it took, 0 before its end.
    """

    def __init__(
        self,
        options: SearchOptions,
        *,
        surroundings: Callable[[], Awaitable[NetworkNeighbourhood]] = read_surroundings,
        browse: Browse = browse,
    ) -> None:
        self.seconds = 0.0
        self._options = options
        self._surroundings = surroundings
        self._browse = browse
        self._sockets = Sockets(options.max_open)
        self._hunt: SearchRun | None = None
        self._arrived: asyncio.Queue[Discovered | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_entered = False
        self._is_closed = False

    def __repr__(self) -> str:
        is_over = self._is_closed if self._task is None else self._task.done()
        state = "over" if is_over else "new" if self._task is None else "under way"
        return f"<Search {state}, {self.addresses} addresses asked>"

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return () if self._hunt is None else self._hunt.skipped

    @property
    def addresses(self) -> int:
        return 0 if self._hunt is None else self._hunt.asker.asked

    @property
    def open_at_most(self) -> int:
        return self._sockets.open_at_most

    async def __aenter__(self) -> Search:
        self._is_entered = True
        self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> AsyncGenerator[Discovered, None]:
        # A generator, because asyncio ends one that a loop was broken out of.
        return self._nodes()

    async def _nodes(self) -> AsyncGenerator[Discovered, None]:
        self._start()
        try:
            while (node := await self._arrived.get()) is not None:
                yield node
            self._arrived.put_nowait(None)  # for another iteration
        finally:
            if not self._is_entered:
                await self.aclose()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()  # raises what went wrong in it

    async def aclose(self) -> None:
        """End the search: no task and no socket is left. Idempotent."""
        self._is_closed = True
        if self._task is None:
            self._arrived.put_nowait(None)
        elif not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None and not self._is_closed:
            self._task = asyncio.create_task(self._run(), name="aiosollol search")

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            self._hunt = await self._prepare(began + self._options.timeout)
            await self._hunt.run()
        except* Enough:
            pass
        finally:
            self.seconds = clock() - began
            self._arrived.put_nowait(None)
            if self._hunt is not None:
                self._hunt.asker.tell_left_out()

    async def _prepare(self, deadline: float) -> SearchRun:
        """What is to be known before anybody is asked: a few milliseconds, and no packet but to
        the resolver, if host names are trusted."""
        options = self._options
        trust = options.trust
        around, trust = await asyncio.gather(self._look_around(), _resolved(trust, options.timeout))
        hunt = SearchRun(
            options,
            self._sockets,
            around,
            trust,
            browse=self._browse if options.use_zeroconf else None,
            tell=self._arrived.put_nowait,
            deadline=deadline,
        )
        await hunt.plan()
        return hunt

    async def _look_around(self) -> NetworkNeighbourhood:
        try:
            async with asyncio.timeout(self._options.timeout):
                return await self._surroundings()
        except (OSError, ImportError) as error:  # TimeoutError is an OSError
            _log.warning(
                "the networks of this machine are not known, so none is searched: %s", error
            )
            return NetworkNeighbourhood()


async def _resolved(trust: Trust | None, timeout: float) -> Trust | None:
    return None if trust is None else await trust.resolved(timeout)
