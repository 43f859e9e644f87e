"""Dask collections embedded by an engine's workers, and the pool's API for those workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Unpack
from uuid import uuid4

import anyio.to_thread

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.runner import BatchRunner
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.core.arguments import EmbedArguments, FilePath, OnError, OnProgress
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import LOCAL
from aiosollol.core.offload.write_report import WriteOrder, WriteReport
from aiosollol.core.request import EmbedSettings, check_on_error, collect_texts
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.core.stats import CallCounters
from aiosollol.errors import BatchError, InvalidInput
from aiosollol.wire.ollama.embeddings import dump_embed

_SAMPLE = "a text"  # embedded first, to learn the dimensions before any file is written


class CollectionBatches:
    """Collections that an engine's workers read, embed and write.

    See `OllamaPool.embed_bag` and `embed_dataframe`.

    planning: options for planning batches.
    check_open: raises PoolClosed.
    calls: counters of the pool's calls.
    """

    def __init__(
        self,
        batches: BatchRunner,
        engine_batches: EngineBatches,
        eligibility: Eligibility,
        planning: PlanOptions,
        check_open: Callable[[], None],
        calls: CallCounters,
    ) -> None:
        self._calls = calls
        self._batches = batches
        self._engine_batches = engine_batches
        self._eligibility = eligibility
        self._planning = planning
        self._check_open = check_open

    async def embed_bag(
        self,
        model: str,
        bag: Any,
        path: FilePath,
        *,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        overwrite: bool = False,
        **settings: Unpack[EmbedArguments],
    ) -> WriteReport:
        """Embed a bag of texts on Dask workers, which write files into `path`."""
        checked = EmbedSettings(model=model, **settings)
        return await self._write(checked, bag, None, path, on_error, on_progress, overwrite)

    async def embed_dataframe(
        self,
        model: str,
        df: Any,
        column: str,
        path: FilePath,
        *,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        overwrite: bool = False,
        **settings: Unpack[EmbedArguments],
    ) -> WriteReport:
        """Embed a column of a dataframe in the same way."""
        checked = EmbedSettings(model=model, **settings)
        if not isinstance(column, str):
            raise InvalidInput(f"column must be the name of a column, not {column!r}")
        return await self._write(checked, df, column, path, on_error, on_progress, overwrite)

    async def _write(
        self,
        settings: EmbedSettings,
        collection: Any,
        column: str | None,
        path: FilePath,
        on_error: OnError,
        on_progress: OnProgress | None,
        overwrite: bool,
    ) -> WriteReport:
        self._check_open()
        check_on_error(on_error)
        engine = self._engine_batches.writing_engine()
        dump_embed(settings, ())  # options may hold what JSON cannot carry
        with self._calls.counting():
            sample = await self._batches.embed(
                settings, [_SAMPLE], {}, self._planning, engine=LOCAL
            )
            if sample.errors:
                raise BatchError(sample, sample.errors)
            order = WriteOrder(
                settings=settings,
                planning=self._planning,
                directory=await anyio.to_thread.run_sync(os.path.abspath, os.fspath(path)),
                column=column,
                on_error=on_error,
                dim=sample.dim,
                digest=self._eligibility.digest_in_use(settings.model),
                run=uuid4().hex[:8],
                overwrite=overwrite,
            )
            reports: list[WriteReport] = []

            async def write() -> None:
                reports.append(await engine.write(collection, order, on_progress))

            await self._batches.until_closed(write)
            return reports[0]


class WorkerAccess:
    """What an engine's worker needs of its pool; not for other programs.

    check_open: raises PoolClosed.
    """

    def __init__(
        self, batches: BatchRunner, eligibility: Eligibility, check_open: Callable[[], None]
    ) -> None:
        self._batches = batches
        self._eligibility = eligibility
        self._check_open = check_open

    async def embed_partition(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        planning: PlanOptions,
        digest: str | None,
    ) -> Embeddings:
        """Embed a worker's part of a batch, on nodes whose model has `digest`.

        Failed items are in ``.errors``. Raises ModelNotFound, NoNodeAvailable, PoolClosed.
        """
        self._check_open()
        if digest:
            self._eligibility.require(settings.model, digest)
        items, invalid = collect_texts(texts)
        return await self._batches.embed(settings, items, invalid, planning, engine=LOCAL)
