"""Engine batches: choose an engine, run a batch on it, and collect the vectors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from aiosollol.cluster.state import ClusterState
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import (
    LOCAL,
    EngineJob,
    EngineOffer,
    EngineOutcome,
    choose,
)
from aiosollol.core.report import EngineNote
from aiosollol.core.scheduling.vector_buffer import VectorBuffer
from aiosollol.errors import EngineError, SollolError
from aiosollol.ports import Engine, WritingEngine

log = logging.getLogger("aiosollol")

_LEAST_SECONDS = 0.05  # predicted duration of a batch from which an engine's pace is measured
_SMOOTHING = 0.3
_MOST_PACE = 10.0  # limits the effect of a batch in which a node died

AUTOMATIC = "dask"
"""The engine that "auto" may use for a batch. The others are there for sharing nodes."""

WRITING = "dask"
"""The engine with collections, which its workers read and write themselves."""


class EngineBatches:
    """The engines of a pool. threshold: minimum number of items for which "auto" uses one."""

    def __init__(
        self, cluster: ClusterState, engines: Mapping[str, Engine], threshold: int
    ) -> None:
        self._cluster = cluster
        self._engines = engines
        self._threshold = threshold
        self._complaints: dict[str, str] = {}
        self._paces: dict[str, float] = {}

    def choose(self, wanted: str, items: int, predicted_seconds: float) -> EngineNote:
        """The engine for a batch. Raises EngineError if the requested one is not enabled."""
        if wanted == "auto" and not self._engines:
            return EngineNote()
        offers = [
            EngineOffer(
                name,
                engine.start_seconds,
                self._threshold,
                name == AUTOMATIC,
                self._paces.get(name),
            )
            for name, engine in self._engines.items()
        ]
        return choose(wanted, offers, items, predicted_seconds, self._paces.get(LOCAL, 1.0))

    @contextmanager
    def timing(self, name: str, items: int, predicted_seconds: float) -> Iterator[None]:
        """Context manager around a batch that learns the engine's pace (actual / predicted).

        Skips small batches, and those for which an engine has to start.
        """
        engine = self._engines.get(name)
        is_telling = (
            bool(self._engines)
            and items >= self._threshold
            and predicted_seconds >= _LEAST_SECONDS
            and (engine is None or engine.start_seconds == 0.0)
        )
        began = self._cluster.clock()
        yield
        if is_telling:
            pace = min(_MOST_PACE, (self._cluster.clock() - began) / predicted_seconds)
            known = self._paces.get(name, pace)
            self._paces[name] = known + _SMOOTHING * (pace - known)

    def instead(self, chosen: EngineNote, error: EngineError) -> EngineNote:
        """Fall back to this process if the chosen engine is unusable. Warns once per error."""
        if self._complaints.get(chosen.name) != error.detail:
            self._complaints[chosen.name] = error.detail
            log.warning("%s; batches are computed in this process", error)
        return EngineNote(LOCAL, str(error))

    def writing_engine(self) -> WritingEngine:
        """The engine for collections. Raises EngineError if it is not enabled."""
        choose(WRITING, [EngineOffer(name, 0.0, 0) for name in self._engines], 0, 0.0)
        return cast(WritingEngine, self._engines[WRITING])

    def stats(self) -> dict[str, dict[str, Any]]:
        """The statistics of each engine, by name."""
        return {name: engine.stats() for name, engine in self._engines.items()}

    async def aclose(self) -> None:
        """Close the engines."""
        for engine in self._engines.values():
            await engine.aclose()

    def begin(
        self, name: str, job: EngineJob, buffer: VectorBuffer, tell: Callable[[int], None] | None
    ) -> Delivery:
        """Prepare a batch for the engine `name`. tell: called with the number of settled texts."""
        return Delivery(self._cluster, self._engines[name], job, buffer, tell)


class Delivery:
    """One batch on an engine. Await `run` once, then read `outcome` and `errors`."""

    def __init__(
        self,
        cluster: ClusterState,
        engine: Engine,
        job: EngineJob,
        buffer: VectorBuffer,
        tell: Callable[[int], None] | None,
    ) -> None:
        self._cluster = cluster
        self._engine = engine
        self._job = job
        self._buffer = buffer
        self._tell = tell
        self._is_put = bytearray(len(job.texts))
        self.outcome = EngineOutcome()
        self.errors: dict[int, SollolError] = {}

    async def run(self) -> None:
        """Wait until the engine is done. Raises EngineError if it could not start."""
        self.outcome = await self._engine.carry(self._job, self._put)
        self.errors.update(self.outcome.errors)
        self._cluster.merge_counters(self.outcome.counters)
        self.give_up(EngineError(self._engine.name, "returned no vector for this text"))

    def give_up(self, error: SollolError) -> None:
        """Fail the texts without a vector with `error`, unless they already have an error."""
        for item, is_put in enumerate(self._is_put):
            if not is_put:
                self.errors.setdefault(item, error)

    def _put(self, start: int, vectors: Embeddings) -> None:
        items = range(start, start + len(vectors))
        if vectors.dim and self._buffer.dim in (0, vectors.dim):
            self._buffer.put(items, vectors.buffer, vectors.dim)
        elif vectors.dim:
            error = EngineError(
                self._engine.name,
                f"returned vectors of {vectors.dim} dimensions, expected {self._buffer.dim}",
            )
            self.errors.update(dict.fromkeys(items, error))
        self._is_put[items.start : items.stop] = b"\1" * len(items)
        if self._tell is not None:
            self._tell(self._is_put.count(1))
