"""The slots of one node: admission of requests, and waiting for a free slot."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Protocol

import anyio

from aiosollol.cluster.workload import Workload
from aiosollol.core.routing.concurrency_limit import START
from aiosollol.core.routing.wait_queue import HIGHEST, Ticket, WaitingRoom

BATCH_WINDOW = 2
"""Chunks in flight on a node at once: one is computed while the next is on the wire."""

_CHUNKS, _CHECKS = "chunks", "checks"  # the lines of what waits for a slot, beside live requests
_LOOKING = 16
"""The first requests in the line of a node, which may look for another one when they wait longer
than they should. Those behind them would find nothing better before these have moved; if all look,
it takes more time than it saves: 6,000 requests over two nodes of 15 ms took 15 s of CPU, with this
limit 7 s, and 3 s over nodes so fast that hardly any wait."""


class Gate(Protocol):
    """An event that one task waits for. `anyio.Event` is one; for asyncio there is a much cheaper
    one, `FutureGate`."""

    def set(self) -> object: ...
    async def wait(self) -> object: ...


class Waiter:
    """A request that waits for a slot.

    work, seconds: what it is, and how long it is expected to take. until: when to look for another
    node, by the registry's clock. gives_up: when not to wait any longer. has_place: he has one.
    """

    __slots__ = ("arrived", "gives_up", "has_place", "seconds", "until", "work")

    def __init__(
        self, arrived: Gate, work: Workload, seconds: float, until: float, gives_up: float
    ) -> None:
        self.arrived = arrived
        self.work = work
        self.seconds = seconds
        self.until = until
        self.gives_up = gives_up
        self.has_place = False


Room = WaitingRoom[Waiter]


class NodeSlots:
    """The base of `Node` that counts requests. One request has one place, from first to last.

    in_flight: requests of this process under way. queued: live requests that wait in `room`.
    cap: how many of any kind there may be here, as the user, `allow` and `lend` say; how many live
    ones of each kind there should be was learned, see `Workload.allowed`. far_using, far_wants:
    requests that workers of this program have under way, or would have. lent: places that these may
    use without asking again. ends_at: no request in its line gives up before.
    """

    __slots__ = (
        "_chunks",
        "_kept",
        "_left",
        "_on_pressure",
        "_own_cap",
        "_room",
        "_waiting_chunks",
        "_workloads",
        "cap",
        "ends_at",
        "far_using",
        "far_wants",
        "in_flight",
        "lent",
        "name",
        "queued",
        "share",
    )

    def __init__(self, name: str, max_concurrency: int | None, room: Room | None) -> None:
        self.name = name
        self.in_flight = 0
        self.queued = 0
        self.ends_at = math.inf
        self._chunks = 0  # those of `in_flight` that are of batches
        self._room = Room(0) if room is None else room
        self._left: anyio.Event | None = None
        self._on_pressure: Callable[[NodeSlots], object] | None = None
        self._waiting_chunks: WaitingRoom[anyio.Event] = WaitingRoom(sys.maxsize)
        self._own_cap = math.inf if max_concurrency is None else max_concurrency
        self._workloads: list[Workload] = []
        self._kept = math.inf
        self.share = self._own_cap
        self.lend(None)

    @property
    def window(self) -> int:
        """Maximum number of chunks of batches in flight."""
        return int(min(BATCH_WINDOW, self._own_cap))

    @property
    def wanted(self) -> int:
        """Requests in flight and waiting: the number it could have in flight now."""
        chunks = min(self._waiting_chunks.count(_CHUNKS), max(0, self.window - self._chunks))
        return self.in_flight + self.queued + self._waiting_chunks.count(_CHECKS) + chunks

    def allow(
        self, places: int | None, on_pressure: Callable[[NodeSlots], object] | None = None
    ) -> None:
        """Let it have so many requests of this program at once; None for no limit but the user's.

        What is under way goes on, so there may be more for a while.

        on_pressure: called when a request has to wait here, and when `lend` has changed something.
        """
        self._on_pressure = on_pressure
        self.share = self._own_cap if places is None else min(self._own_cap, places)
        self._set_cap()

    def lend(self, kept: int | None, using: int = 0, wants: int = 0, lent: int = 0) -> None:
        """Divide the program's slots between this process and its workers.

        kept: slots for this process; None if there are no workers.
        using, wants: requests that the workers have, and could have, in flight.
        lent: slots that the workers may use until updated.
        """
        self._kept = math.inf if kept is None else kept
        self.far_using, self.far_wants, self.lent = using, wants, lent
        self._set_cap()
        if self._left is not None:
            self._left.set()
            self._left = None
        self._press()

    @property
    def taken(self) -> int:
        """Slots that the program uses, here and in its workers.

        If more are kept and lent than its reduced share, all that may still be used.
        """
        allotted = max(self.in_flight, self.cap) + self.lent
        if self.lent and allotted > self.share:
            return int(allotted)
        return self.in_flight + self.far_using

    def _set_cap(self) -> None:
        self.cap = min(self.share, self._kept)
        self.call_waiting()

    def _press(self) -> None:
        if self._on_pressure is not None:
            self._on_pressure(self)

    @property
    def limit(self) -> int:
        """How many live requests there should be at once, of the kinds that there are now."""
        works = self._workloads
        limit = sum(each.allowed for each in works if each.in_flight or each.queued)
        limit = limit or max((each.allowed for each in works), default=int(START))
        return int(min(limit, self.cap))

    # Taking and freeing slots.

    def has_room(self, work: Workload) -> bool:
        """Whether there is a free slot for a live request. Chunks do not count, but for `cap`."""
        return work.in_flight < work.allowed and self.in_flight < self.cap

    def try_enter(self, work: Workload) -> bool:
        """Take a slot for a live request if one is free. Pair with `leave`."""
        if not self.has_room(work):
            return False
        self.in_flight += 1
        work.in_flight += 1
        return True

    async def enter(self) -> None:
        """Take a slot for a check of the node, as soon as `cap` allows it.

        It goes before all that wait. Pair with `leave_chunk`.
        """
        await self._enter(_CHECKS, -math.inf, HIGHEST)

    async def enter_chunk(self, came: float, priority: int) -> None:
        """Take a slot for a chunk of a batch, as soon as `cap` and `window` allow it.

        It waits while chunks or live requests wait here that go first, by priority and time of
        arrival. Pair with `leave_chunk`.
        """
        await self._enter(_CHUNKS, came, priority)

    async def _enter(self, line: str, came: float, priority: int) -> None:
        has_place = anyio.Event()
        ticket = self._waiting_chunks.add(has_place, line, came, priority)
        assert ticket is not None
        self.call_waiting()
        if has_place.is_set():
            return
        self._press()
        try:
            await has_place.wait()
        except BaseException:
            if not self._waiting_chunks.remove(ticket):  # it was assigned a slot: free it again
                self.leave_chunk()
            raise

    def leave(self, work: Workload) -> None:
        """Free the slot of a live request. The next waiting request gets it at once."""
        work.in_flight -= 1
        self._free()

    def leave_chunk(self) -> None:
        """Free the slot of a chunk. The next waiting request gets it at once."""
        self._chunks -= 1
        self._free()

    def _free(self) -> None:
        self.in_flight -= 1
        if self.queued or len(self._waiting_chunks):
            self.call_waiting()
        if self._left is not None:
            self._left.set()
            self._left = None

    async def wait_left(self) -> None:
        """Return when the next request has ended, or may have, at the program's workers."""
        if self._left is None:
            self._left = anyio.Event()
        await self._left.wait()

    # Waiting.

    def line_up(self, waiter: Waiter, came: float, priority: int) -> Ticket[Waiter] | None:
        """Queue `waiter` for a slot; None if the room is full. Pair with `step_out`."""
        ticket = self._room.add(waiter, waiter.work.line, came, priority)
        if ticket is not None:
            self._count(waiter, 1)
            self.ends_at = min(self.ends_at, waiter.gives_up)
            self._press()
        return ticket

    def step_out(self, ticket: Ticket[Waiter]) -> bool:
        """Take it out of the line; False if it was taken out already."""
        if not self._room.remove(ticket):
            return False
        self._count(ticket.item, -1)
        return True

    def _count(self, waiter: Waiter, one: int) -> None:
        work = waiter.work
        self.queued += one
        work.queued += one
        # Exactly zero when none waits, and never negative from rounding.
        seconds = work.queued_seconds + one * waiter.seconds
        work.queued_seconds = max(0.0, seconds) if work.queued else 0.0

    @property
    def has_chunks(self) -> bool:
        """Whether any chunk of a batch is in flight."""
        return self._chunks > 0

    def _call_chunks(self) -> None:
        """Assign free slots to checks, and to the chunks that go before all live requests."""
        waiting = self._waiting_chunks
        while self.in_flight < self.cap and len(waiting):
            foremost = waiting.front(_CHECKS, 1)
            if not foremost and self._chunks < self.window:
                foremost = waiting.front(_CHUNKS, 1)
            if not foremost or (self.queued and self._has_live_before(foremost[0])):
                return
            first = foremost[0]
            waiting.remove(first)
            self.in_flight += 1
            self._chunks += 1
            first.item.set()

    def _has_live_before(self, chunk: Ticket[anyio.Event]) -> bool:
        lines = [work.line for work in self._workloads if work.queued]
        return any(ticket < chunk for line in lines for ticket in self._room.front(line, 1))

    def call_waiting(self) -> None:
        """Assign free slots to waiting requests and chunks."""
        self._call_chunks()
        while self.queued and (work := self._next_line()) is not None:
            waiter = self._room.take(work.line)
            if waiter is None:
                return
            self._count(waiter, -1)
            self.in_flight += 1
            work.in_flight += 1
            waiter.has_place = True
            waiter.arrived.set()
            self._call_chunks()

    def _next_line(self) -> Workload | None:
        """Of the lines for which a slot is free, the one with the foremost request."""
        works = [each for each in self._workloads if each.queued and self.has_room(each)]
        if len(works) < 2:
            return works[0] if works else None
        first = min(ticket for each in works for ticket in self._room.front(each.line, 1))
        return first.item.work

    def send_late_away(self, now: float) -> None:
        """Wake the requests whose time is over. Of those that have waited for this node longer than
        they should, wake the foremost: they look for another one."""
        room = self._room
        lines = [each.line for each in self._workloads if each.queued]
        late = [
            ticket
            for line in lines
            for ticket in room.front(line, _LOOKING)
            if ticket.item.until <= now
        ]
        if self.ends_at <= now:
            waiting = [ticket for line in lines for ticket in room.tickets(line)]
            late += [ticket for ticket in waiting if ticket.item.gives_up <= now]
            ends = (ticket.item.gives_up for ticket in waiting)
            self.ends_at = min((end for end in ends if end > now), default=math.inf)
        for ticket in late:
            if self.step_out(ticket):
                ticket.item.arrived.set()

    def send_away(self) -> None:
        """Reroute all waiting requests."""
        for work in self._workloads:
            while (waiter := self._room.take(work.line)) is not None:
                self._count(waiter, -1)
                waiter.arrived.set()
