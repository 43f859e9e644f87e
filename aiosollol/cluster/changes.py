"""Waiting for changes of the cluster."""

from __future__ import annotations

import anyio


class Changes:
    """Counts changes, and wakes the tasks that wait for one. A base of `ClusterState`.

    version: increases with every change.
    first_uses: how often a node has embedded with a model for the first time, see `Node.embeds`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = anyio.Event()
        self.version = 0
        self.first_uses = 0

    def wake(self) -> None:
        """Wake all tasks that wait for a change."""
        self.version += 1
        self._call_waiting()

    async def wait_changed(self, version: int) -> None:
        """Wait until anything has changed since `version`."""
        while self.version == version:
            await self._changed.wait()

    def note_use(self) -> None:
        """Wake the tasks in `wait_news`."""
        self.first_uses += 1
        self._call_waiting()

    async def wait_news(self, version: int, first_uses: int) -> None:
        """Wait as `wait_changed`, or until a node has first embedded with a model since then."""
        while self.version == version and self.first_uses == first_uses:
            await self._changed.wait()

    def _call_waiting(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
