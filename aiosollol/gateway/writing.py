"""`VectorWriter`: vectors become text while the nodes still compute others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from aiosollol.wire.answers import Floats

Write = Callable[[Floats, int], list[bytes]]
"""`answers.json_vectors` or `answers.base64_vectors`."""

_ROWS = 64  # vectors that are written before others get their turn


class VectorWriter:
    """Writes the vectors of one batch, a few in each turn of the event loop.

    A thousand vectors of 768 numbers take 25 ms, which a client would wait for at the end.
    Leaving it ends the work.
    """

    def __init__(self, count: int, write: Write) -> None:
        self._json = [b""] * count
        self._write = write
        self._pending: deque[tuple[Sequence[int], memoryview[float]]] = deque()
        self._turn: asyncio.Handle | None = None

    def __enter__(self) -> VectorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pending.clear()
        self._stop()

    def add(self, rows: Sequence[int], vectors: memoryview[float]) -> None:
        """For `OllamaPool.embed_batch` to call."""
        self._pending.append((rows, vectors))
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    async def finish(self) -> list[bytes]:
        """All vectors, in order."""
        self._stop()
        while self._pending:
            self._write_some()
            await asyncio.sleep(0)
        return self._json

    def _take_turn(self) -> None:
        self._turn = None
        self._write_some()
        if self._pending:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _write_some(self) -> None:
        rows, vectors = self._pending.popleft()
        if len(rows) > _ROWS:
            self._pending.appendleft((rows[_ROWS:], vectors[_ROWS:]))
            rows, vectors = rows[:_ROWS], vectors[:_ROWS]
        assert vectors.shape is not None
        texts = self._write(vectors.cast("B"), vectors.shape[1])
        for row, text in zip(rows, texts, strict=True):
            self._json[row] = text

    def _stop(self) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
