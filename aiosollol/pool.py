"""`OllamaPool`: many Ollama servers behind one object. The parts are put together here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any, Literal, Unpack, overload
from weakref import WeakSet

import anyio

from aiosollol.admission import Admission
from aiosollol.batches import Batches, OnProgress
from aiosollol.beginnings import begin
from aiosollol.care import Care
from aiosollol.carriage import Carriage
from aiosollol.config.resolve import Resolved, resolve
from aiosollol.config.settings import PoolSettings, RoutingStrategy
from aiosollol.conversations import Conversations
from aiosollol.core.agreement import check_digest
from aiosollol.core.buffer import OnVectors
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.engines import LOCAL, EngineName, check_engine
from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.core.planner import ForceMode, PlanOptions
from aiosollol.core.report import BatchReport, report_of_one
from aiosollol.core.request import (
    EmbedSettings,
    check_model,
    check_text,
    check_timeout,
    collect_texts,
    loading_of,
    plain_settings,
    reload_key,
)
from aiosollol.core.routing import RoutingFunction, strategy_of
from aiosollol.core.stats import pool_stats
from aiosollol.core.waiting import USUAL, check_priority
from aiosollol.embed_stream import EmbedStream
from aiosollol.engine_loading import load_engines, load_sharing
from aiosollol.errors import (
    BatchError,
    InvalidInput,
    PoolClosed,
)
from aiosollol.exchange import EmbedCall, Exchange
from aiosollol.far_batches import FarBatches
from aiosollol.forwarding import Forwarding
from aiosollol.live import LiveCalls, LiveOptions, Wishes
from aiosollol.loads import Loads
from aiosollol.node_registry import NodeRegistry
from aiosollol.operations import Operations
from aiosollol.ports import Tracing, Transport
from aiosollol.roster import Roster
from aiosollol.tracing import PassOn
from aiosollol.transport import HttpTransport
from aiosollol.upkeep import CLOSE_SECONDS, Upkeep
from aiosollol.wire.embed import dump_embed, fits_base64

OnError = Literal["raise", "return"]

log = logging.getLogger("aiosollol")

_LOOK_SECONDS = 0.01  # while it waits for calls to end, which is seldom and not for long
_NOTHING = (None, None, None, None)


class OllamaPool(Operations, Conversations, Forwarding, FarBatches):
    """Many Ollama servers as one. Use it with ``async with``, or `start` it and `aclose` it.

    One pool serves any number of tasks of one event loop at once, and is meant to live as long as
    the program does: it learns how fast each node is and keeps connections open.

    nodes: URLs, ``host:port``, bare hosts, mappings or `NodeSpec`, or a `NodeRegistry`. None means
    the one in ``OLLAMA_HOST``, else those of the file of nodes, else what a search of the network
    finds, else http://127.0.0.1:11434.
    require_digest: model -> the digest (its first 7 digits or more) that nodes must have of it to
    embed with it.
    routing_strategy: which node gets a live request: "performance", "score", "round_robin",
    "priority", "least_loaded", "random", or a `RoutingFunction` of your own.
    transport_factory: makes the way to a node; tests pass one that makes `testing.FakeTransport`.
    tracing: who follows requests to the nodes, such as `otel.OpenTelemetry`; None records nothing.
    settings: the other settings, such as ``embed_timeout=30``; `PoolSettings` has their names and
    types, docs/configuration.md what they mean. What is not given comes from the environment, then
    the settings file, then the defaults.

    Raises InvalidInput for nodes that cannot be read, and ConfigError for settings. Nothing is sent
    before `start`.
    """

    def __init__(
        self,
        nodes: Iterable[NodeLike] | NodeRegistry | None = None,
        *,
        require_digest: Mapping[str, str] | None = None,
        routing_strategy: RoutingStrategy | RoutingFunction | None = None,
        transport_factory: Callable[[NodeSpec], Transport] = HttpTransport,
        tracing: Tracing | None = None,
        **settings: Unpack[PoolSettings],
    ) -> None:
        named = None if callable(routing_strategy) else routing_strategy
        resolved = self._resolve({**settings, "routing_strategy": named})
        held = resolved.settings
        strategy = routing_strategy if callable(routing_strategy) else held.routing_strategy
        self._strategy = strategy_of(strategy)
        self._strategy_name = (
            strategy if isinstance(strategy, str) else getattr(strategy, "__name__", "custom")
        )
        self._registry, search = begin(nodes, resolved, transport_factory)
        self._registry.room.limit = held.max_waiting
        self._planning = PlanOptions(
            policy=held.policy, min_gain=held.min_gain, same_machine=held.same_machine
        )
        self._embed_timeout = held.embed_timeout
        self._chat_timeout = held.chat_timeout
        self._wait_timeout = held.wait_timeout
        self._close_timeout = held.close_timeout
        self._is_impatient = False
        self._usual = Wishes(self._embed_timeout, is_patient=True)
        self._upkeep = Upkeep(
            self._registry,
            transport_factory,
            search=search,
            follows=held.watch_network,
            metrics_interval=held.metrics_interval,
            check_interval=held.check_interval,
        )
        self._embed_streams: WeakSet[EmbedStream] = WeakSet()
        self._rng = Random()
        self._roster = Roster(
            self._registry, self._upkeep.monitor.probe, _checked_digests(require_digest)
        )
        self._loads = Loads(self._upkeep.spawn)
        self._tracing = PassOn() if tracing is None else tracing
        exchange = Exchange(self._registry, self._upkeep.transport_of, self._loads, self._tracing)
        self._admission = Admission(
            self._registry,
            self._roster,
            self._strategy,
            self._wait_timeout,
            self._rng,
            self._upkeep.spawn,
        )
        live_options = LiveOptions(
            held.max_retries, held.retry_budget, held.hedge_rate, held.first_byte_timeout
        )
        self._live = LiveCalls(
            self._registry,
            self._roster,
            self._admission,
            exchange,
            live_options,
            self._upkeep.spawn,
            self._rng,
        )
        engines = load_engines(held, self._registry)
        self._carriage = Carriage(self._registry, engines, held.dask_threshold)
        self._sharing = load_sharing(engines, held, self._registry, self._upkeep.monitor.probe)
        self._batches = Batches(
            self._registry, exchange, self._roster, self._carriage, self._embed_timeout
        )
        self._care = Care(self._registry, self._roster, exchange)
        self._state: Literal["new", "open", "closed"] = "new"
        self._closing: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        nodes = ", ".join(repr(node)[6:-1] for node in self._registry)
        return f"<OllamaPool {self._state}: {nodes}>"

    # Its life.

    async def __aenter__(self) -> OllamaPool:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Who leaves by an exception is in no mood to wait for what other tasks do.
        await self.aclose(None if kind is None else 0.0)

    async def start(self) -> None:
        """Begin to watch the nodes. Returns at once; calls wait for the first node by themselves.

        Idempotent. Raises PoolClosed if the pool was closed.
        """
        if self._state == "closed":
            raise PoolClosed("the pool was closed; make a new one")
        if self._state == "open":
            return
        self._state = "open"
        self._loop = asyncio.get_running_loop()
        self._upkeep.start()
        if self._sharing is not None:
            self._upkeep.spawn(self._sharing.run(), "share the nodes")

    async def aclose(self, wait: float | None = None) -> None:
        """Wait for what is under way, then end the rest and close every connection. Idempotent.

        wait: seconds that calls of other tasks have to end by themselves, the setting
        `close_timeout` if None. Those that have not by then raise PoolClosed; new ones do so at
        once.
        """
        self._state = "closed"
        if self._closing is None:
            seconds = self._close_timeout if wait is None else max(0.0, wait)
            self._closing = asyncio.create_task(self._close(seconds), name="close the pool")
        elif wait is not None and wait <= 0.0:
            self._is_impatient = True
        await _finish(self._closing)

    async def _close(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            # Two looks at open streams: who reads one does not wait for it all the time.
            looks = 2 if self._live.has_streams else 1
            idle = 0
            while not self._is_impatient:
                idle = 0 if self._live.is_busy or self._batches.is_busy else idle + 1
                if idle >= looks:
                    break
                await asyncio.sleep(_LOOK_SECONDS)
        tasks = self._upkeep.cancel()
        self._roster.close()
        self._loads.close()
        for node in self._registry:
            node.send_away()
        self._batches.close()
        with anyio.move_on_after(CLOSE_SECONDS):
            for stream in list(self._embed_streams):
                await stream.aclose(PoolClosed("the pool was closed during this stream"))
            await self._live.aclose()
            if tasks:
                await asyncio.wait(tasks)
        with anyio.move_on_after(CLOSE_SECONDS):
            await self._carriage.aclose()
        await self._upkeep.aclose()
        self._registry.hub.close()

    # What is known.

    def get_stats(self) -> dict[str, Any]:
        """Counts of everything so far, exact. See `core.stats.pool_stats` for the keys; each engine
        that is turned on has one more, by its name."""
        now = self._registry.clock() if self._state == "open" else 0.0
        counts = pool_stats(
            [node.stats(now) for node in self._registry],
            strategy=self._strategy_name,
            plans=self._batches.plans,
            states=[node.state for node in self._registry],
        )
        return counts | self._carriage.stats()

    # Embedding.

    @overload
    async def embed(  # type: ignore[overload-overlap]  # a str is a Sequence[str] as well
        self,
        model: str,
        input: str,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
        *,
        timeout: float | None = None,
        priority: int = USUAL,
    ) -> Vector: ...
    @overload
    async def embed(
        self,
        model: str,
        input: Sequence[str],
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
        *,
        timeout: float | None = None,
        priority: int = USUAL,
    ) -> Embeddings: ...
    async def embed(
        self,
        model: str,
        input: str | Sequence[str],
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
        *,
        timeout: float | None = None,
        priority: int = USUAL,
    ) -> Vector | Embeddings:
        """The vector of one text, or `Embeddings` of a list, by one request to one node; of a list
        ``.report`` says which.

        timeout: seconds for all of it. priority: 1 to 10; if requests have to wait for a node, 10
        goes first. Another node is asked if one fails. Raises InvalidInput, ModelNotFound,
        NoNodeAvailable, PoolSaturated, or BadRequest with the server's words.
        """
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
        if isinstance(input, str):
            check_text(input)
            texts = [input]
        else:
            texts, errors = collect_texts(input)
            for error in errors.values():
                raise error
            if not texts:
                return Embeddings(b"", 0)
        call = EmbedCall(
            model=model,
            texts=texts,
            body=dump_embed(settings, texts),
            fits_base64=fits_base64(settings),
            tokens=self._registry.ratio(model).tokens_of(texts),
            timeout=self._embed_timeout,
            dimensions=dimensions,
            options=None if options is None else reload_key(options),
            loading=loading_of(options, keep_alive),
        )
        if timeout is None and priority == USUAL:
            wishes = self._usual
        else:
            seconds = self._embed_timeout if timeout is None else check_timeout(timeout)
            wishes = Wishes(seconds, check_priority(priority), is_patient=timeout is None)
        began = self._registry.clock()
        answer = await self._live.embed(call, wishes)
        if isinstance(input, str):
            return answer.floats.toreadonly()
        seconds = self._registry.clock() - began
        report = report_of_one(answer.node, len(texts), answer.tokens, seconds)
        return Embeddings(answer.floats, answer.dim, report=report)

    async def embed_batch(
        self,
        model: str,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        on_error: OnError = "raise",
        on_progress: OnProgress | None = None,
        on_vectors: OnVectors | None = None,
        force_mode: ForceMode | None = None,
        timeout: float | None = None,
        engine: EngineName = "auto",
    ) -> Embeddings:
        """The vectors of many texts, in input order, computed by all nodes that have the model.

        Equal texts are computed once. A chunk that fails on a node is done by another; one that
        fails for its input is split until the culprit is alone.

        on_progress: called with (settled, all) as the batch goes on. on_vectors: called with (rows,
        vectors) as they come: positions in `texts`, and a read-only float32 memoryview of shape
        (rows, dimensions). A row that two nodes computed may come twice.
        on_error: with "raise", items without a vector raise BatchError, which carries the vectors
        of all others; with "return" they are NaN rows named in ``Embeddings.errors``.
        force_mode: "sequential" uses one node, "parallel" every machine, whatever is predicted.
        timeout: seconds for all of it; what is not done by then fails, the rest is kept. None is no
        limit but that of each request, `embed_timeout`.
        engine: where to compute: "local" in this process, "dask" or "ray" by workers of those;
        "auto" takes Dask, where that is turned on, if the batch is worth it.

        Raises InvalidInput (nothing was sent), ModelNotFound, NoNodeAvailable, BatchError, and
        EngineError if the engine that was asked for cannot be used.
        """
        self._check_open()
        settings = EmbedSettings(
            model=model,
            dimensions=dimensions,
            truncate=truncate,
            options=options,
            keep_alive=keep_alive,
        )
        planning = replace(self._planning, force_mode=force_mode)
        _check_batch(settings, on_error)
        check_engine(engine)
        items, invalid = collect_texts(texts)
        if invalid and on_error == "raise":
            raise next(iter(invalid.values()))
        if not items:
            return Embeddings(b"", 0, report=BatchReport(0, 0, 0.0))
        embeddings = await self._batches.embed(
            settings,
            items,
            invalid,
            planning,
            on_progress,
            None if timeout is None else check_timeout(timeout),
            engine,
            on_vectors,
        )
        if embeddings.errors and on_error == "raise":
            raise BatchError(embeddings, embeddings.errors)
        return embeddings

    def embed_stream(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        dimensions: int | None = None,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        on_error: OnError = "raise",
    ) -> EmbedStream:
        """The vectors of any number of texts, as an async iterator in input order.

        The texts may come from any iterable, also an async one; it is read no faster than the
        vectors are taken, so memory stays bounded however many there are.

        on_error: with "raise" the iteration ends with BatchError at the first segment in which an
        item has no vector; with "return" such vectors are NaN and named in ``EmbedStream.errors``.

        Raises InvalidInput here, and from the iteration ModelNotFound, NoNodeAvailable, BatchError.
        """
        self._check_open()
        settings = EmbedSettings(
            model=model,
            dimensions=dimensions,
            truncate=truncate,
            options=options,
            keep_alive=keep_alive,
        )
        _check_batch(settings, on_error)

        async def embed(segment: list[str]) -> Embeddings:
            items, invalid = collect_texts(segment)
            return await self._batches.embed(settings, items, invalid, self._planning, engine=LOCAL)

        stream = EmbedStream(texts, embed, stops_at_error=on_error == "raise")
        self._embed_streams.add(stream)
        return stream

    # How the parts are held together.

    @staticmethod
    def _resolve(arguments: Mapping[str, Any]) -> Resolved:
        return resolve(arguments)

    def _check_open(self) -> None:
        if self._state == "closed":
            raise PoolClosed("the pool is closed")
        if self._state == "new":
            raise PoolClosed("the pool is not open yet: use 'async with', or await pool.start()")
        if asyncio.get_running_loop() is not self._loop:
            raise PoolClosed("the pool was opened in another event loop: make one for each loop")


def _checked_digests(require_digest: object) -> Mapping[str, str]:
    if require_digest is None:
        return {}
    if not isinstance(require_digest, Mapping):
        raise InvalidInput(
            "require_digest must map models to digests, as in {'nomic-embed-text': '0a109f422b47'},"
            f" not {require_digest!r}"
        )
    for model, digest in require_digest.items():
        check_model(model)
        problem = check_digest(digest)
        if problem is not None:
            raise InvalidInput(f"require_digest of {model}: {problem}")
    return dict(require_digest)


def _check_batch(settings: EmbedSettings, on_error: str) -> None:
    """Raise InvalidInput for what would otherwise fail when the first chunk is made."""
    if on_error not in ("raise", "return"):
        raise InvalidInput(f"on_error must be 'raise' or 'return', not {on_error!r}")
    dump_embed(settings, ())  # options may hold what JSON cannot carry


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for `task` to its end, even if whoever waits is cancelled; then let that through."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
