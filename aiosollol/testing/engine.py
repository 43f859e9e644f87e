"""`FakeEngine`: an engine without workers, for tests of code that uses engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio

from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import EngineJob, EngineOutcome, partitions
from aiosollol.core.report import NodeShare
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import EngineError, SollolError
from aiosollol.testing.models import FakeModel, fake_vector


class FakeEngine:
    """Answers with `fake_vector`, two partitions at a time, the second of them first.

    node: the node it attributes the work to.
    seconds: duration of a partition.
    fails: why it cannot start; "" if it can.
    missing: position -> error.
    forgets: positions for which it gives neither a vector nor an error.
    job: the last job it was given.
    """

    def __init__(
        self,
        model: FakeModel,
        *,
        node: str = "a",
        name: str = "dask",
        start_seconds: float = 0.0,
        seconds: float = 0.1,
        fails: str = "",
        missing: Mapping[int, SollolError] | None = None,
        forgets: range = range(0),
    ) -> None:
        self.name = name
        self.start_seconds = start_seconds
        self.fails = fails
        self.job: EngineJob | None = None
        self.is_closed = False
        self.was_cancelled = False
        self._model = model
        self._node = node
        self._seconds = seconds
        self._missing = dict(missing or {})
        self._forgets = forgets

    async def carry(self, job: EngineJob, put: Callable[[int, Embeddings], None]) -> EngineOutcome:
        if self.fails:
            raise EngineError(self.name, self.fails)
        self.job = job
        outcome = EngineOutcome(dashboard="http://127.0.0.1:8787/status")
        parts = list(partitions(job.texts, job.tokens, job.predicted_seconds, 2))
        for number in range(0, len(parts), 2):
            try:
                await anyio.sleep(self._seconds)
            except BaseException:
                self.was_cancelled = True
                raise
            for place, part in reversed(list(enumerate(parts[number : number + 2]))):
                self._answer(job, part, put, outcome, f"worker {place}")
        return outcome

    def stats(self) -> dict[str, Any]:
        return {"enabled": True, "running": self.job is not None, "dashboard": None}

    async def aclose(self) -> None:
        self.is_closed = True

    def _answer(
        self,
        job: EngineJob,
        part: range,
        put: Callable[[int, Embeddings], None],
        outcome: EngineOutcome,
        worker: str,
    ) -> None:
        if set(part) & set(self._forgets):
            return
        model = self._model
        vectors = (fake_vector(model.digest, job.texts[item], model.dim) for item in part)
        errors = {i - part.start: self._missing[i] for i in part if i in self._missing}
        put(part.start, Embeddings(b"".join(map(bytes, vectors)), model.dim, errors=errors))
        share = NodeShare(items=len(part) - len(errors), requests=1, seconds=self._seconds)
        counters = NodeCounters(succeeded=1, vectors=share.items, latency=self._seconds)
        outcome.add(part.start, {self._node: share}, {self._node: counters}, errors, worker)
