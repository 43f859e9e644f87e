"""`BodyMemory`: the bytes of all requests under way, and the line of those that wait for some."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class BodyMemory:
    """Bounds what the bodies of requests take together. A body that waits is not read meanwhile:
    it stays with its client, but for the 64 kB or so that the buffers hold.

    small: bytes of the bodies that came with their heads, which take them whatever is decided.
    large: of the others that were let in.
    """

    def __init__(self) -> None:
        self.small = self.large = 0
        self._line: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self, size: int, most: int, seconds: float) -> bool:
        """Count a large body once it fits in `most`, in order; False if it did not in `seconds`.

        One always fits, however large. `release` must follow if it does.
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
            if is_counted and not has_room.cancelled():  # there was room in this very moment
                self.release(size, most)
            else:  # those behind it may fit
                self.release(0, most)
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def release(self, size: int, most: int) -> None:
        """A large body is done with: let in those at the head of the line that fit now."""
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
