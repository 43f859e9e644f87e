"""`OllamaPool`: many Ollama servers behind one object. The parts are put together here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, overload
from weakref import WeakSet

import anyio

from aiosollol.batches import Batches, OnProgress
from aiosollol.beginnings import begin
from aiosollol.config.resolve import resolve
from aiosollol.conversations import Conversations
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.node import ClusterView, NodeLike, NodeSpec
from aiosollol.core.parallelism import (
    DEFAULT_SIZES,
    DEFAULT_TOKENS_PER_ITEM,
    ParallelismEntry,
    is_parallel_worthwhile,
    parallelism_report,
)
from aiosollol.core.planner import BatchShape, ForceMode, Plan, PlanOptions, Policy, SameMachine
from aiosollol.core.report import BatchReport
from aiosollol.core.request import (
    EmbedSettings,
    check_model,
    check_text,
    collect_texts,
    plain_settings,
)
from aiosollol.core.stats import pool_stats
from aiosollol.embed_stream import EmbedStream
from aiosollol.errors import BatchError, InvalidInput, PoolClosed
from aiosollol.exchange import EmbedCall
from aiosollol.live import LiveCalls
from aiosollol.node_registry import NodeRegistry
from aiosollol.ports import Transport
from aiosollol.roster import Roster
from aiosollol.transport import HttpTransport
from aiosollol.upkeep import CLOSE_SECONDS, Upkeep
from aiosollol.wire.embed import dump_embed, fits_base64

OnError = Literal["raise", "return"]

log = logging.getLogger("aiosollol")

_NOTHING = (None, None, None, None)


class OllamaPool(Conversations):
    """Many Ollama servers as one. Use it with ``async with``, or `start` it and `aclose` it.

    One pool serves any number of tasks of one event loop at once, and is meant to live as long as
    the program does: it learns how fast each node is and keeps connections open.

    nodes: URLs, ``host:port``, bare hosts, mappings or `NodeSpec`, or a `NodeRegistry`. None means
    the one in ``OLLAMA_HOST``, else those of the file of nodes, else what a search of the network
    finds, else http://127.0.0.1:11434.
    auto_discover: whether the network is searched if no node is named; True searches even if some
    are. discovery_timeout: seconds that an address has to answer a search. trusted: the only
    addresses, names or TLS fingerprints that a search may accept.
    embed_timeout, chat_timeout: seconds for one request to one node, everything included.
    policy, min_gain, same_machine: how batches are spread, see `PlanOptions`.
    metrics_interval, check_interval: seconds between two looks at a node, see `Monitor`.
    transport_factory: makes the way to a node; tests pass one that makes `testing.FakeTransport`.

    What is not given comes from the environment, then the settings file, then the defaults; see
    docs/configuration.md. Raises InvalidInput for nodes that cannot be read, and ConfigError for
    settings. Nothing is sent before `start`.
    """

    def __init__(
        self,
        nodes: Iterable[NodeLike] | NodeRegistry | None = None,
        *,
        auto_discover: bool | None = None,
        discovery_timeout: float | None = None,
        trusted: Iterable[str] | None = None,
        embed_timeout: float | None = None,
        chat_timeout: float | None = None,
        policy: Policy | None = None,
        min_gain: float | None = None,
        same_machine: SameMachine | None = None,
        metrics_interval: float | None = None,
        check_interval: float | None = None,
        transport_factory: Callable[[NodeSpec], Transport] = HttpTransport,
    ) -> None:
        resolved = resolve(
            {
                "auto_discover": auto_discover,
                "discovery_timeout": discovery_timeout,
                "trusted": trusted,
                "embed_timeout": embed_timeout,
                "chat_timeout": chat_timeout,
                "policy": policy,
                "min_gain": min_gain,
                "same_machine": same_machine,
                "metrics_interval": metrics_interval,
                "check_interval": check_interval,
            }
        )
        settings = resolved.settings
        self._registry, search = begin(nodes, resolved, transport_factory)
        self._planning = PlanOptions(
            policy=settings.policy, min_gain=settings.min_gain, same_machine=settings.same_machine
        )
        self._embed_timeout = settings.embed_timeout
        self._chat_timeout = settings.chat_timeout
        self._upkeep = Upkeep(
            self._registry,
            transport_factory,
            search=search,
            metrics_interval=settings.metrics_interval,
            check_interval=settings.check_interval,
        )
        transport_of = self._upkeep.transport_of
        self._embed_streams: WeakSet[EmbedStream] = WeakSet()
        self._roster = Roster(self._registry, self._upkeep.monitor.probe)
        self._live = LiveCalls(self._registry, self._roster, transport_of)
        self._batches = Batches(
            self._registry,
            transport_of,
            partial(self._roster.wait_ready, patient=True),
            self._embed_timeout,
        )
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
        await self.aclose()

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

    async def aclose(self) -> None:
        """End what is under way and close every connection. Idempotent.

        Calls that are under way in other tasks raise PoolClosed.
        """
        self._state = "closed"
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name="close the pool")
        await _finish(self._closing)

    async def _close(self) -> None:
        tasks = self._upkeep.cancel()
        self._roster.close()
        self._batches.close()
        with anyio.move_on_after(CLOSE_SECONDS):
            for stream in list(self._embed_streams):
                await stream.aclose(PoolClosed("the pool was closed during this stream"))
            await self._live.aclose()
            if tasks:
                await asyncio.wait(tasks)
        await self._upkeep.aclose()

    # What is known.

    @property
    def view(self) -> ClusterView:
        """Every node as known now, frozen."""
        return self._registry.view

    async def refresh(self) -> ClusterView:
        """Ask every node again what it has, and return what is known then.

        Takes as long as the slowest node does, 7 s at most.
        """
        self._check_open()
        await self._roster.probe_all()
        return self.view

    def get_stats(self) -> dict[str, Any]:
        """Counts of everything so far, exact. See `core.stats.pool_stats` for the keys."""
        return pool_stats([node.stats() for node in self._registry], strategy="performance")

    # Planning.

    async def plan(
        self,
        model: str,
        items: int,
        *,
        tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
        force_mode: ForceMode | None = None,
    ) -> Plan:
        """What would be done now with a batch of `items` texts: which nodes, how long, and why.

        Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        self._check_open()
        check_model(model)
        if not isinstance(items, int) or items < 1:
            raise InvalidInput(f"items must be a whole number from 1 on, not {items!r}")
        options = replace(self._planning, force_mode=force_mode)
        return await self._batches.plan(model, BatchShape(items, items * tokens_per_item), options)

    async def parallelism_report(
        self,
        model: str,
        sizes: Iterable[int] = DEFAULT_SIZES,
        *,
        tokens_per_item: float = DEFAULT_TOKENS_PER_ITEM,
    ) -> list[ParallelismEntry]:
        """For each batch size: the plan, both estimates, and what the plan saves.

        Raises InvalidInput, ModelNotFound, NoNodeAvailable.
        """
        self._check_open()
        check_model(model)
        nodes = await self._roster.wait_ready(model, patient=True)
        return parallelism_report(
            self._registry.candidates(model, nodes),
            sizes,
            tokens_per_item=tokens_per_item,
            options=self._planning,
            verdicts=self._registry.verdicts(model),
        )

    def count_unique_physical_hosts(self) -> int:
        """How many machines the nodes are, as far as their addresses and labels tell."""
        return len(set(self._registry.machines.values()))

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """The original's rule: whether there are at least two tasks and two machines."""
        is_worthwhile, why = is_parallel_worthwhile(num_tasks, self._registry.machines)
        log.debug("parallel execution %s: %s", "yes" if is_worthwhile else "no", why)
        return is_worthwhile

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
    ) -> Embeddings: ...
    async def embed(
        self,
        model: str,
        input: str | Sequence[str],
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
    ) -> Vector | Embeddings:
        """The vector of one text, or `Embeddings` of a list, by one request to one node.

        Another node is asked if one fails. Raises InvalidInput, ModelNotFound, NoNodeAvailable, or
        BadRequest with the server's words.
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
        )
        answer = await self._live.embed(call)
        if isinstance(input, str):
            return answer.floats.toreadonly()
        return Embeddings(answer.floats, answer.dim)

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
        force_mode: ForceMode | None = None,
    ) -> Embeddings:
        """The vectors of many texts, in input order, computed by all nodes that have the model.

        Equal texts are computed once. A chunk that fails on a node is done by another; one that
        fails for its input is split until the culprit is alone.

        on_progress: called with (settled, all) as the batch goes on.
        on_error: with "raise", items without a vector raise BatchError, which carries the vectors
        of all others; with "return" they are NaN rows named in ``Embeddings.errors``.
        force_mode: "sequential" uses one node, "parallel" every machine, whatever is predicted.

        Raises InvalidInput (nothing was sent), ModelNotFound, NoNodeAvailable, BatchError.
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
        items, invalid = collect_texts(texts)
        if invalid and on_error == "raise":
            raise next(iter(invalid.values()))
        if not items:
            return Embeddings(b"", 0, report=BatchReport(0, 0, 0.0))
        embeddings = await self._batches.embed(settings, items, invalid, planning, on_progress)
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
            return await self._batches.embed(settings, items, invalid, self._planning)

        stream = EmbedStream(texts, embed, stops_at_error=on_error == "raise")
        self._embed_streams.add(stream)
        return stream

    # How the parts are held together.

    def _check_open(self) -> None:
        if self._state == "closed":
            raise PoolClosed("the pool is closed")
        if self._state == "new":
            raise PoolClosed("the pool is not open yet: use 'async with', or await pool.start()")
        if asyncio.get_running_loop() is not self._loop:
            raise PoolClosed("the pool was opened in another event loop: make one for each loop")


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
