"""`BodyMemory`: the bytes of all request bodies in memory, and each client's share of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from aiosollol.gateway.middleware.clients import ClientTotals

_MOST_WAITING = 64 << 20


class BodyMemory:
    """Bounds the memory of all request bodies, and each client's share of it. A waiting body is not
    read: it stays with the client, except for about 64 kB in the buffers.

    A client may hold half of it, so that the other half is left for others. Those that hold least
    are admitted first; bodies of one client are admitted in order.

    small: bytes of the bodies that arrived with their heads, which are in memory in any case.
    large: bytes of the other bodies that were admitted.
    waiting: bytes of those that wait although they are in memory.
    """

    def __init__(self) -> None:
        self.small = self.large = self.waiting = 0
        self._small, self._large, self._waiting = ClientTotals(), ClientTotals(), ClientTotals()
        self._lines: dict[str, OrderedDict[asyncio.Future[None], int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def held_by(self, client: str) -> int:
        """Bytes that a client holds."""
        return self._small[client] + self._large[client]

    async def wait(self, client: str, size: int, most: int, seconds: float) -> bool:
        """Admit a large body in turn once it fits in `most` bytes; False after `seconds`.

        A single body always fits, however large. After True, call `release`.
        """
        if not self._lines and self._fits(client, size, most):
            self._take(client, size)
            return True
        has_room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(client, OrderedDict())[has_room] = size
        try:
            self._admit(most)  # those in line may all be over their share
            async with asyncio.timeout(seconds):
                await has_room
        except BaseException as error:
            is_counted = not self._leave_line(client, has_room)
            if is_counted and not has_room.cancelled():  # it was admitted at this very moment
                self.release(client, size, most)
            else:  # those behind it may fit
                self._admit(most)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def take_small(self, client: str, size: int, most: int) -> bool:
        """Count a body that arrived with its head, unless it would exceed `most` bytes.

        A quarter of that is kept for these, so that large ones don't shut them out, and an eighth
        for those of one client; a single body always fits. After True, call `release_small`.
        """
        if size:
            small, own = self.small + size, self._small[client] + size
            if self.small and small > most // 4 and small + self.large > most:
                return False
            if own > max(size, most // 8) and not self._is_in_share(client, size, most):
                return False
            self.small = small
            self._small.add(client, size)
        return True

    def release_small(self, client: str, size: int, most: int) -> None:
        """Remove a body that `take_small` has counted, and admit what fits now."""
        self.small -= size
        self._small.add(client, -size)
        if self._lines:
            self._admit(most)

    async def wait_in_memory(self, client: str, size: int, most: int, seconds: float) -> bool:
        """As `wait`, for a body that is in memory already, so that only as many may wait."""
        room, waiting = max(most, _MOST_WAITING), self._waiting[client]
        if self.waiting + size > room or (waiting and waiting + size > room // 2):
            return False
        self.waiting += size
        self._waiting.add(client, size)
        try:
            return await self.wait(client, size, most, seconds)
        finally:
            self.waiting -= size
            self._waiting.add(client, -size)

    def grow(self, client: str, size: int, small: int, large: int, most: int) -> bool:
        """Count `size` more bytes of a body, if they fit in `most`.

        As long as its client has no other body and there is no other large body, they do.

        small, large: bytes of this body that are counted.
        """
        held = self.held_by(client)
        if held > small + large and held + size > most // 2:
            return False
        if self.large > large and self.small + self.large + size > most:
            return False
        self._take(client, size)
        return True

    def release(self, client: str, size: int, most: int) -> None:
        """Remove a large body, and admit the first ones in line that fit now."""
        self.large -= size
        self._large.add(client, -size)
        self._admit(most)

    def _admit(self, most: int) -> None:
        """Admit bodies in line, those of the client that holds least first, while they fit."""
        while (found := self._next(most)) is not None:
            client, has_room, size = found
            self._leave_line(client, has_room)
            if not has_room.done():  # else its request was cancelled
                self._take(client, size)
                has_room.set_result(None)

    def _next(self, most: int) -> tuple[str, asyncio.Future[None], int] | None:
        """The body to take out of the line: its client, future and size."""
        for client in sorted(self._lines, key=self.held_by):
            has_room, size = next(iter(self._lines[client].items()))
            if has_room.done() or self._fits(client, size, most):
                return client, has_room, size
            if self._is_in_share(client, size, most):
                return None  # it is the next one, and waits for room
        return None

    def _leave_line(self, client: str, has_room: asyncio.Future[None]) -> bool:
        """Remove a body from the line; whether it was there."""
        line = self._lines.get(client)
        if line is None or line.pop(has_room, None) is None:
            return False
        if not line:
            del self._lines[client]
        return True

    def _is_in_share(self, client: str, size: int, most: int) -> bool:
        held = self.held_by(client)
        return not held or held + size <= most // 2

    def _fits(self, client: str, size: int, most: int) -> bool:
        has_room = not self.large or self.small + self.large + size <= most
        return has_room and self._is_in_share(client, size, most)

    def _take(self, client: str, size: int) -> None:
        self.large += size
        self._large.add(client, size)
