"""`Embedder`: embed, embed_batch and embed_stream. Turns arguments into requests and batches."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack
from weakref import WeakSet

from aiosollol.batch.runner import BatchRunner
from aiosollol.batch.stream import EmbedStream
from aiosollol.cluster.state import ClusterState
from aiosollol.core.arguments import EmbedArguments, OnError, OnProgress
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.offload.engine_choice import LOCAL, EngineName, check_engine
from aiosollol.core.report import BatchReport, report_of_one
from aiosollol.core.request import (
    EmbedSettings,
    check_on_error,
    check_text,
    check_timeout,
    collect_texts,
    loading_of,
    plain_settings,
    reload_key,
)
from aiosollol.core.routing.wait_queue import LOW, USUAL, check_priority
from aiosollol.core.scheduling.planner import ForceMode, PlanOptions
from aiosollol.core.scheduling.vector_buffer import OnVectors
from aiosollol.core.truncation import OnTruncate, check_on_truncate
from aiosollol.errors import (
    BadRequest,
    BatchError,
    PoolClosed,
    SollolError,
    TextTooLong,
)
from aiosollol.live.calls import EmbedCall
from aiosollol.live.router import CallOptions, RequestRouter
from aiosollol.pool.truncation import TruncationWatch
from aiosollol.wire.ollama.embeddings import EmbedAnswer, dump_embed, fits_base64

_NOTHING = (None, None, None, None)


class Embedder:
    """Embeds texts on the nodes of a pool: see the methods of the same names on `OllamaPool`.

    live: sends a single request.
    batches: runs batches.
    planning: options for planning batches.
    timeout: default seconds for a request.
    check_open: raises PoolClosed.
    truncations: reports texts that servers cut.
    """

    def __init__(
        self,
        cluster: ClusterState,
        live: RequestRouter,
        batches: BatchRunner,
        planning: PlanOptions,
        timeout: float,
        check_open: Callable[[], None],
    ) -> None:
        self._cluster = cluster
        self._live = live
        self._batches = batches
        self._planning = planning
        self._timeout = timeout
        self._usual = CallOptions(timeout, is_patient=True)
        self._check_open = check_open
        self._calls = live.calls
        self.truncations = TruncationWatch(cluster)
        self._streams: WeakSet[EmbedStream] = WeakSet()

    async def embed(
        self,
        model: str,
        input: str | Sequence[str],
        truncate: bool | None,
        options: Mapping[str, Any] | None,
        keep_alive: str | float | None,
        dimensions: int | None,
        *,
        timeout: float | None = None,
        priority: int = USUAL,
        on_truncate: OnTruncate = "warn",
    ) -> Vector | Embeddings:
        """The vector of one text, or `Embeddings` of a list, by one request to one node."""
        self._check_open()
        settings_given = (dimensions, truncate, options, keep_alive)
        if settings_given == _NOTHING and isinstance(model, str):
            settings = plain_settings(model)
        else:
            settings = EmbedSettings(
                model=model,
                dimensions=dimensions,
                truncate=truncate,
                options=options,
                keep_alive=keep_alive,
            )
        if on_truncate != "warn":
            settings = check_on_truncate(settings, on_truncate)
        if isinstance(input, str):
            check_text(input)
            texts = [input]
        else:
            texts, errors = collect_texts(input)
            for error in errors.values():
                raise error
            if not texts:
                return Embeddings(b"", 0)
        if timeout is None and priority == USUAL:
            wishes = self._usual
        else:
            seconds = self._timeout if timeout is None else check_timeout(timeout)
            wishes = CallOptions(seconds, check_priority(priority), is_patient=timeout is None)
        try:
            if not isinstance(input, str):
                return await self._list(settings, texts, wishes, on_truncate)
            answer = await self._send(settings, texts, wishes)
        except BadRequest as error:
            if on_truncate == "raise":
                is_single = isinstance(input, str)
                await self._refuse_long(settings, texts, error, wishes.timeout, is_single)
            raise
        self.truncations.look(settings, texts, answer.node, answer.tokens, on_truncate)
        return answer.floats.toreadonly()

    async def _refuse_long(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        refused: BadRequest,
        timeout: float,
        is_single: bool,
    ) -> None:
        """Raise TextTooLong if a text was refused because it is too long, with its position."""
        errors: Mapping[int, SollolError] = {0: refused}
        if TextTooLong.of(refused) is refused:
            return
        if len(texts) > 1:  # the server does not say which, so they are sent in parts
            parts = await self._batches.embed(
                settings, texts, {}, self._planning, timeout=timeout, engine=LOCAL
            )
            errors = parts.errors
        for index, error in errors.items():
            found = TextTooLong.of(error, None if is_single else index)
            if found is not error:
                raise found from error

    async def gathered(
        self,
        model: str,
        texts: Sequence[str],
        dimensions: int | None,
        truncate: bool | None,
        *,
        is_batch: bool,
    ) -> Embeddings:
        """The vectors of texts of several calls, which are counted elsewhere.

        is_batch: as `embed_batch` with ``on_error="return"``; else as `embed`, in one request.
        """
        self._check_open()
        settings = EmbedSettings(model=model, dimensions=dimensions, truncate=truncate)
        items, invalid = collect_texts(texts)
        if is_batch:
            embeddings = await self._batches.embed(settings, items, invalid, self._planning)
            self._warn(settings, embeddings)
            return embeddings
        for error in invalid.values():
            raise error
        return await self._list(settings, items, self._usual._replace(calls=0))

    async def _list(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        wishes: CallOptions,
        on_truncate: OnTruncate = "warn",
    ) -> Embeddings:
        """The vectors of a list, by one request to one node."""
        began = self._cluster.clock()
        answer = await self._send(settings, texts, wishes)
        seconds = self._cluster.clock() - began
        tokens = answer.tokens
        cut = self.truncations.look(settings, texts, answer.node, tokens, on_truncate)
        report = report_of_one(answer.node, len(texts), tokens, seconds, cut)
        return Embeddings(answer.floats, answer.dim, report=report)

    async def _send(
        self, settings: EmbedSettings, texts: Sequence[str], wishes: CallOptions
    ) -> EmbedAnswer:
        options = settings.options
        call = EmbedCall(
            model=settings.model,
            texts=texts,
            body=dump_embed(settings, texts),
            fits_base64=fits_base64(settings),
            tokens=self._cluster.ratio(settings.model).tokens_of(texts),
            dimensions=settings.dimensions,
            options=None if options is None else reload_key(options),
            loading=loading_of(options, settings.keep_alive),
        )
        return await self._live.embed(call, wishes)

    async def embed_batch(
        self,
        model: str,
        texts: Iterable[str],
        *,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        on_vectors: OnVectors | None = None,
        force_mode: ForceMode | None = None,
        timeout: float | None = None,
        engine: EngineName = "auto",
        on_truncate: OnTruncate = "warn",
        priority: int = LOW,
        **settings: Unpack[EmbedArguments],
    ) -> Embeddings:
        """The vectors of many texts, in input order, computed by all nodes that have the model."""
        self._check_open()
        checked = check_on_truncate(EmbedSettings(model=model, **settings), on_truncate)
        planning = replace(self._planning, force_mode=force_mode)
        check_settings(checked, on_error)
        check_engine(engine)
        check_priority(priority)
        items, invalid = collect_texts(texts)
        if invalid and on_error == "raise":
            raise next(iter(invalid.values()))
        if not items:
            return Embeddings(b"", 0, report=BatchReport(0, 0, 0.0))
        seconds = None if timeout is None else check_timeout(timeout)
        with self._calls.counting():
            embeddings = await self._batches.embed(
                checked,
                items,
                invalid,
                planning,
                on_progress,
                seconds,
                engine,
                on_vectors,
                priority,
            )
            self._warn(checked, embeddings, on_truncate)
            if embeddings.errors and on_error == "raise":
                raise BatchError(embeddings, embeddings.errors)
        return embeddings

    def embed_stream(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        on_error: OnError = "raise",
        on_truncate: OnTruncate = "warn",
        **settings: Unpack[EmbedArguments],
    ) -> EmbedStream:
        """The vectors of any number of texts, as an async iterator in input order."""
        self._check_open()
        checked = check_on_truncate(EmbedSettings(model=model, **settings), on_truncate)
        check_settings(checked, on_error)

        async def embed(segment: list[str]) -> Embeddings:
            items, invalid = collect_texts(segment)
            embeddings = await self._batches.embed(
                checked, items, invalid, self._planning, engine=LOCAL
            )
            self._warn(checked, embeddings, on_truncate)
            return embeddings

        stream = EmbedStream(
            texts, embed, stops_at_error=on_error == "raise", on_end=self._calls.ended
        )
        self._streams.add(stream)
        return stream

    def _warn(
        self, settings: EmbedSettings, embeddings: Embeddings, on_truncate: OnTruncate = "warn"
    ) -> None:
        """Report what a batch shows of texts that were cut, or refused so as not to be."""
        report = embeddings.report
        if report is not None:
            self.truncations.warn(settings.model, report.truncated, report.items, on_truncate)
        if on_truncate == "raise":
            for index, error in embeddings.errors.items():
                embeddings.errors[index] = TextTooLong.of(error, index)

    async def aclose(self) -> None:
        """End open streams: their readers raise PoolClosed."""
        for stream in list(self._streams):
            await stream.aclose(PoolClosed("the pool was closed during this stream"))


def check_settings(settings: EmbedSettings, on_error: str) -> None:
    """Raise InvalidInput for settings that would only fail with the first chunk."""
    check_on_error(on_error)
    dump_embed(settings, ())  # options may hold what JSON cannot carry
