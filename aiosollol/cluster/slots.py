"""The slots of one node: admission of requests, and waiting for a free slot."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio

from aiosollol.core.routing import concurrency_limit
from aiosollol.core.routing.wait_queue import Ticket, WaitingRoom

BATCH_WINDOW = 2
"""Chunks in flight on a node at once: one is computed while the next is on the wire."""

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
        """Maximum number of chunks of a batch in flight."""
        return int(min(BATCH_WINDOW, self._own_cap))

    @property
    def wanted(self) -> int:
        """Requests in flight and waiting: the number it could have in flight now."""
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
        self._bound()
        self._call_chunks()
        self.call_waiting()

    def _press(self) -> None:
        if self._on_pressure is not None:
            self._on_pressure(self)

    def adapt(self, limit: int) -> None:
        """Set the adaptive concurrency limit of live requests."""
        self._adapted = limit
        self._bound()

    def _bound(self) -> None:
        # The cap also bounds `limit`, so that requests go to nodes with free slots instead.
        self.limit = int(min(self._adapted, self.cap))

    # Taking and freeing slots.

    def try_enter(self) -> bool:
        """Take a slot for a live request if one is free. Pair with `leave`."""
        # A batch always has chunks in flight: they must not keep out all live requests.
        if self.in_flight - self._chunks >= max(1, self.limit - self._chunks):
            return False
        if self.in_flight >= self.cap:
            return False
        self.in_flight += 1
        return True

    async def enter(self) -> None:
        """Take a slot for a chunk of a batch, as soon as `cap` allows it.

        Pair with ``leave(is_live=False)``.
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
            if has_place.is_set():  # cancelled after the slot was assigned: free it again
                self.leave(is_live=False)
            else:
                self._waiting_chunks.remove(has_place)
            raise

    def leave(self, *, is_live: bool = True) -> None:
        """Free the slot of a request. The next waiting request gets it at once."""
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

    # Waiting.

    def line_up(self, waiter: Waiter, came: float, priority: int) -> Ticket[Waiter] | None:
        """Queue `waiter` for a slot; None if the room is full. Pair with `step_out`."""
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
        """Assign free slots to waiting requests."""
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
        """Reroute all waiting requests."""
        while (waiter := self._room.take(self.name)) is not None:
            self.queued -= 1
            waiter.arrived.set()
