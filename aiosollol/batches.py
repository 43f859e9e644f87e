"""Batches: many texts in, `Embeddings` out, by way of a plan and an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import anyio

from aiosollol.core.buffer import VectorBuffer
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.planner import BatchShape, Plan, PlanOptions, plan
from aiosollol.core.report import BatchReport
from aiosollol.core.request import EmbedSettings, Unique, unique_texts
from aiosollol.errors import InvalidInput, PoolClosed, SollolError
from aiosollol.exchange import Exchange
from aiosollol.executor import Executor, Job
from aiosollol.nodes import Node
from aiosollol.registry import Registry
from aiosollol.roster import Roster

OnProgress = Callable[[int, int], None]


class Batches:
    """Carries out batches over the nodes of a registry, any number at a time.

    exchange: sends a request to a node. roster: says which nodes are fit for a model. timeout:
    seconds for one request.
    """

    def __init__(
        self, registry: Registry, exchange: Exchange, roster: Roster, timeout: float
    ) -> None:
        self._registry = registry
        self._exchange = exchange
        self._roster = roster
        self._timeout = timeout
        self._running: set[anyio.CancelScope] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a batch is under way."""
        return bool(self._running)

    def close(self) -> None:
        """End the batches that are under way: they raise PoolClosed."""
        for scope in self._running:
            scope.cancel()

    async def plan(self, model: str, shape: BatchShape, options: PlanOptions) -> Plan:
        """What would be done with a batch now."""
        view = self._registry.candidates(model, await self.ready_nodes(model))
        return plan(view, shape, options, self._registry.verdicts(model))

    async def ready_nodes(self, model: str) -> Sequence[Node]:
        """The nodes that may take part in a batch: up, with `model`, and of comparable vectors."""
        await self._roster.wait_ready(model, patient=True)
        return self._roster.comparable(model)

    async def embed(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        invalid: Mapping[int, InvalidInput],
        options: PlanOptions,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Embeddings:
        """Vectors for `texts` but those that are `invalid`; what failed is in ``.errors``.

        timeout: seconds for all of it; what is not done by then has failed.

        Raises PoolClosed, ModelNotFound or NoNodeAvailable.
        """
        began = self._registry.clock()
        unique = unique_texts(texts, invalid)
        buffer = VectorBuffer(len(texts), unique.places, unique.repeats)
        errors: dict[int, SollolError] = dict(invalid)
        executor = None
        if unique.texts:
            job = await self._job(settings, unique, options)
            tell = _counting_rows(unique, len(invalid), len(texts), on_progress)
            executor = Executor(job, buffer, self._registry, self._exchange, tell)
            await self._run(executor, timeout)
            for entry, error in executor.state.errors.items():
                errors.update(dict.fromkeys(buffer.rows_of(entry), error))
        for row in errors:
            buffer.clear_row(row)
        return Embeddings(
            buffer.finish(),
            buffer.dim,
            errors=dict(sorted(errors.items())),
            report=_report(executor, len(texts), len(unique.texts), self._registry.clock() - began),
            count=len(texts),
        )

    async def _job(self, settings: EmbedSettings, unique: Unique, options: PlanOptions) -> Job:
        ratio = self._registry.ratio(settings.model)
        tokens = ratio.tokens_each(unique.texts)
        shape = BatchShape(len(tokens), sum(tokens))
        planned = await self.plan(settings.model, shape, options)
        digest = self._roster.digest_in_use(settings.model)
        return Job(settings, unique.texts, tokens, self._timeout, planned, options, digest)

    async def _run(self, executor: Executor, timeout: float | None) -> None:
        """Carry out a batch, unless the pool is closed or its time is over meanwhile."""
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                with anyio.move_on_after(timeout) as limit:
                    await executor.run()
            finally:
                self._running.discard(scope)
            if limit.cancelled_caught:
                executor.give_up(f"the batch was not done within {timeout:g} s")
        if scope.cancelled_caught:
            raise PoolClosed("the pool was closed during this batch")


def _counting_rows(
    unique: Unique, invalid: int, rows: int, on_progress: OnProgress | None
) -> Callable[[int], None] | None:
    """Tell a caller of rows settled, where the executor counts different texts."""
    if on_progress is None:
        return None
    rows_per_text = (rows - invalid) / len(unique.texts)

    def tell(settled: int) -> None:
        on_progress(invalid + int(settled * rows_per_text + 0.5), rows)

    return tell


def _report(executor: Executor | None, items: int, unique: int, seconds: float) -> BatchReport:
    if executor is None:
        return BatchReport(items, unique, seconds)
    state = executor.state
    return BatchReport(
        items=items,
        unique=unique,
        seconds=seconds,
        nodes=executor.shares(seconds),
        plan=executor.plan,
        splits=state.splits,
        copies=state.copies,
        findings=tuple(state.findings),
        slices=tuple(state.slices),
    )
