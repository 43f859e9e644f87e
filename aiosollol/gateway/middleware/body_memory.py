"""`BodyMemory`: the bytes of all bodies in flight, and the line of bodies that wait for room."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class BodyMemory:
    """Bounds the memory of all request bodies. A waiting body is not read: it stays with the
    client, except for about 64 kB in the buffers.

    small: bytes of the bodies that arrived with their heads, which are in memory in any case.
    large: bytes of the other bodies that were admitted.
    """

    def __init__(self) -> None:
        self.small = self.large = 0
        self._line: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self, size: int, most: int, seconds: float) -> bool:
        """Admit a large body in order once it fits in `most` bytes; False after `seconds`.

        A single body always fits, however large. After True, call `release`.
        """
        if not self._line and self._fits(size, most):
            self.large += size
            return True
        has_room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[has_room] = size
        try:
            async with asyncio.timeout(seconds):
                await has_room
        except BaseException as error:
            is_counted = self._line.pop(has_room, None) is None
            if is_counted and not has_room.cancelled():  # it was admitted at this very moment
                self.release(size, most)
            else:  # those behind it may fit
                self.release(0, most)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def release(self, size: int, most: int) -> None:
        """Remove a large body, and admit the first ones in line that fit now."""
        self.large -= size
        while self._line:
            has_room, wanted = next(iter(self._line.items()))
            if not has_room.done():
                if not self._fits(wanted, most):
                    break
                self.large += wanted
                has_room.set_result(None)
            del self._line[has_room]

    def _fits(self, size: int, most: int) -> bool:
        return not self.large or self.small + self.large + size <= most
