"""Batches and the engines of a pool: collections computed by workers, and a worker's part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import anyio.to_thread

from aiosollol.batches import Batches, OnProgress
from aiosollol.carriage import Carriage
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.engines import LOCAL
from aiosollol.core.planner import PlanOptions
from aiosollol.core.request import EmbedSettings, collect_texts
from aiosollol.core.written import OnError, WriteOrder, WriteReport
from aiosollol.errors import BatchError, InvalidInput
from aiosollol.roster import Roster
from aiosollol.wire.embed import dump_embed

_SAMPLE = "a text"  # whose vector tells how long they are, before a file is begun


class FarBatches:
    """Base of the pool: what it needs is set by the pool. Not meant to be used by itself."""

    _batches: Batches
    _carriage: Carriage
    _roster: Roster
    _planning: PlanOptions

    def _check_open(self) -> None:
        raise NotImplementedError

    async def embed_bag(
        self,
        model: str,
        bag: Any,
        path: str | os.PathLike[str],
        *,
        dimensions: int | None = None,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        overwrite: bool = False,
    ) -> WriteReport:
        """Embed a `dask.bag.Bag` of texts on the workers of Dask, which write Parquet files.

        Neither the texts nor the vectors pass through this process. Each partition becomes one
        file, ``part-00000.parquet`` and so on, whole or not there at all, with the columns
        ``text``, ``embedding`` (lists of float32, all of one length) and ``error``.

        path: a directory that all workers see; it is made if it is not there. overwrite: remove
        such files from it first; else it may have none.
        on_error: with "raise" the first text without a vector ends the call with RequestFailed;
        what is written by then stays. With "return" its embedding is null, and ``error`` says why.
        on_progress: called with (partitions written, all partitions).

        One short text is embedded first, to learn how long the vectors are. Raises InvalidInput,
        ModelNotFound, NoNodeAvailable, RequestFailed, and EngineError where Dask is not turned on
        (``enable_dask=True``) or cannot be used.
        """
        settings = EmbedSettings(
            model=model,
            dimensions=dimensions,
            truncate=truncate,
            options=options,
            keep_alive=keep_alive,
        )
        return await self._write(settings, bag, None, path, on_error, on_progress, overwrite)

    async def embed_dataframe(
        self,
        model: str,
        df: Any,
        column: str,
        path: str | os.PathLike[str],
        *,
        dimensions: int | None = None,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        overwrite: bool = False,
    ) -> WriteReport:
        """Embed a column of a `dask.dataframe.DataFrame` on the workers of Dask: see `embed_bag`.

        The files have the columns of the dataframe, and ``embedding`` and ``error`` beside them.
        """
        settings = EmbedSettings(
            model=model,
            dimensions=dimensions,
            truncate=truncate,
            options=options,
            keep_alive=keep_alive,
        )
        if not isinstance(column, str):
            raise InvalidInput(f"column must be the name of one, not {column!r}")
        return await self._write(settings, df, column, path, on_error, on_progress, overwrite)

    async def _write(
        self,
        settings: EmbedSettings,
        collection: Any,
        column: str | None,
        path: str | os.PathLike[str],
        on_error: OnError,
        on_progress: OnProgress | None,
        overwrite: bool,
    ) -> WriteReport:
        self._check_open()
        if on_error not in ("raise", "return"):
            raise InvalidInput(f"on_error must be 'raise' or 'return', not {on_error!r}")
        engine = self._carriage.writing_engine()
        dump_embed(settings, ())  # options may hold what JSON cannot carry
        sample = await self._batches.embed(settings, [_SAMPLE], {}, self._planning, engine=LOCAL)
        if sample.errors:
            raise BatchError(sample, sample.errors)
        order = WriteOrder(
            settings=settings,
            planning=self._planning,
            directory=await anyio.to_thread.run_sync(os.path.abspath, os.fspath(path)),
            column=column,
            on_error=on_error,
            dim=sample.dim,
            digest=self._roster.digest_in_use(settings.model),
            run=uuid4().hex[:8],
            overwrite=overwrite,
        )
        reports: list[WriteReport] = []

        async def write() -> None:
            reports.append(await engine.write(collection, order, on_progress))

        await self._batches.until_closed(write)
        return reports[0]

    async def embed_partition(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        planning: PlanOptions,
        digest: str | None,
    ) -> Embeddings:
        """A worker's part of a batch: vectors of `texts` by nodes that have `digest` of the model.

        What failed is in ``.errors``. Raises ModelNotFound, NoNodeAvailable, PoolClosed.
        """
        self._check_open()
        if digest:
            self._roster.require(settings.model, digest)
        items, invalid = collect_texts(texts)
        return await self._batches.embed(settings, items, invalid, planning, engine=LOCAL)
