"""The places on one node: who may send a request now, and who waits until he may."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio

from aiosollol.core.routing import concurrency_limit
from aiosollol.core.routing.wait_queue import Ticket, WaitingRoom

BATCH_WINDOW = 2
"""Chunks under way on a node at once: one is computed while the next is on the wire."""

_LOOKING = 16
"""The first requests in the line of a node, which may look for another one when they wait longer
than they should. Those behind them would find nothing better before these have moved; if all look,
it takes more time than it saves: 6,000 requests over two nodes of 15 ms took 15 s of CPU, with this
limit 7 s, and 3 s over nodes so fast that hardly any wait."""


class Gate(Protocol):
    """What one task waits at until another opens it. `anyio.Event` is one, and asyncio has a much
    cheaper one (`asyncio_parts.FutureGate`)."""

    def set(self) -> object: ...
    async def wait(self) -> object: ...


class Waiter:
    """Somebody who waits for a place. `arrived` is set when he has one, or should look elsewhere.

    until: when to look for another node, by the registry's clock. gives_up: when not to wait any
    longer. has_place: he has one.
    """

    __slots__ = ("arrived", "gives_up", "has_place", "until")

    def __init__(self, arrived: Gate, until: float, gives_up: float) -> None:
        self.arrived = arrived
        self.until = until
        self.gives_up = gives_up
        self.has_place = False


Room = WaitingRoom[Waiter]


class NodeSlots:
    """The base of `Node` that counts requests. One request has one place, from first to last.

    in_flight: requests of this process under way. queued: live requests that wait in `room`.
    limit: how many live requests there should be at once, as was learned. cap: how many of any kind
    there may be here, as the user, `allow` and `lend` say. slots: places for chunks of batches.
    far_using, far_wants: requests that workers of this program have under way, or would have.
    lent: places that these may use without asking again. ends_at: no request in its line gives
    up before.
    """

    __slots__ = (
        "_adapted",
        "_chunks",
        "_kept",
        "_left",
        "_on_pressure",
        "_own_cap",
        "_room",
        "_waiting_chunks",
        "cap",
        "ends_at",
        "far_using",
        "far_wants",
        "in_flight",
        "lent",
        "limit",
        "name",
        "queued",
        "share",
        "slots",
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
        self._waiting_chunks: deque[anyio.Event] = deque()
        self._own_cap = math.inf if max_concurrency is None else max_concurrency
        self._adapted = concurrency_limit.start(max_concurrency).allowed
        self._kept = math.inf
        self.share = self._own_cap
        self.lend(None)
        self.slots = anyio.Semaphore(self.window, fast_acquire=True)

    @property
    def window(self) -> int:
        """How many chunks of a batch may be under way on it."""
        return int(min(BATCH_WINDOW, self._own_cap))

    @property
    def wanted(self) -> int:
        """How many requests it would have now if none had to wait: those under way among them."""
        return self.in_flight + self.queued + len(self._waiting_chunks)

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
        """Of the program's places keep so many for this process: the others are its workers'.

        None: it has no workers. using, wants: requests that these have under way, and would have.
        lent: places that they may use until they are told otherwise.
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
        """Places that the program uses, here and by its workers.

        While more are kept and lent than its share has become: all that may yet be used.
        """
        allotted = max(self.in_flight, self.cap) + self.lent
        if self.lent and allotted > self.share:
            return int(allotted)
        return self.in_flight + self.far_using

    def _set_cap(self) -> None:
        self.cap = min(self.share, self._kept)
        self._bound()
        self._call_chunks()
        self.call_waiting()

    def _press(self) -> None:
        if self._on_pressure is not None:
            self._on_pressure(self)

    def adapt(self, limit: int) -> None:
        """It was learned that so many live requests are best."""
        self._adapted = limit
        self._bound()

    def _bound(self) -> None:
        # Where there is no place, a request should not wait for one while others have some.
        self.limit = int(min(self._adapted, self.cap))

    # In and out.

    def try_enter(self) -> bool:
        """Take a place for a live request if there is one. `leave` must follow."""
        # A batch always has its chunks under way: they must not keep out every live request.
        if self.in_flight - self._chunks >= max(1, self.limit - self._chunks):
            return False
        if self.in_flight >= self.cap:
            return False
        self.in_flight += 1
        return True

    async def enter(self) -> None:
        """Begin a request of a batch, as soon as `cap` lets it.

        ``leave(is_live=False)`` must follow.
        """
        if self.in_flight < self.cap:
            self.in_flight += 1
            self._chunks += 1
            return
        has_place = anyio.Event()
        self._waiting_chunks.append(has_place)
        self._press()
        try:
            await has_place.wait()
        except BaseException:
            if has_place.is_set():  # a place was given to us, and we do not want it any more
                self.leave(is_live=False)
            else:
                self._waiting_chunks.remove(has_place)
            raise

    def leave(self, *, is_live: bool = True) -> None:
        """End a request, however it went. Whoever waits for the place has it at once."""
        self.in_flight -= 1
        self._chunks -= not is_live
        if self._waiting_chunks:
            self._call_chunks()
        if self.queued:
            self.call_waiting()
        if self._left is not None:
            self._left.set()
            self._left = None

    async def wait_left(self) -> None:
        """Return when the next request has ended, or may have, at the program's workers."""
        if self._left is None:
            self._left = anyio.Event()
        await self._left.wait()

    # Who waits.

    def line_up(self, waiter: Waiter, came: float, priority: int) -> Ticket[Waiter] | None:
        """Let `waiter` wait for a place here; None if the room is full. `step_out` must follow."""
        ticket = self._room.add(waiter, self.name, came, priority)
        if ticket is not None:
            self.queued += 1
            self.ends_at = min(self.ends_at, waiter.gives_up)
            self._press()
        return ticket

    def step_out(self, ticket: Ticket[Waiter]) -> bool:
        """Take it out of the line; False if it was taken out already."""
        if not self._room.remove(ticket):
            return False
        self.queued -= 1
        return True

    def _call_chunks(self) -> None:
        while self._waiting_chunks and self.in_flight < self.cap:
            self.in_flight += 1
            self._chunks += 1
            self._waiting_chunks.popleft().set()

    def call_waiting(self) -> None:
        """Let in those who wait, as far as there are places."""
        while self.queued and self.try_enter():
            waiter = self._room.take(self.name)
            if waiter is None:
                self.leave()
                return
            self.queued -= 1
            waiter.has_place = True
            waiter.arrived.set()

    def send_late_away(self, now: float) -> None:
        """Wake the requests whose time is over. Of those that have waited for this node longer than
        they should, wake the foremost: they look for another one."""
        room, line = self._room, self.name
        late = [ticket for ticket in room.front(line, _LOOKING) if ticket.item.until <= now]
        if self.ends_at <= now:
            waiting = room.tickets(line)
            late += [ticket for ticket in waiting if ticket.item.gives_up <= now]
            ends = (ticket.item.gives_up for ticket in waiting)
            self.ends_at = min((end for end in ends if end > now), default=math.inf)
        for ticket in late:
            if self.step_out(ticket):
                ticket.item.arrived.set()

    def send_away(self) -> None:
        """Let those who wait look for another node: this one is no good any more."""
        while (waiter := self._room.take(self.name)) is not None:
            self.queued -= 1
            waiter.arrived.set()
