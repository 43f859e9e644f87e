"""Batches: many texts in, `Embeddings` out, by an executor or an engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import anyio

from aiosollol.batch.engine_batches import EngineBatches
from aiosollol.batch.executor import BatchJob, Executor
from aiosollol.cluster.eligibility import Eligibility
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.core.blame import OUTAGE_PATIENCE
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.offload.engine_choice import LOCAL, EngineJob
from aiosollol.core.report import BatchReport, EngineNote
from aiosollol.core.request import EmbedSettings, Unique, unique_texts
from aiosollol.core.routing.wait_queue import LOW
from aiosollol.core.scheduling.live_traffic import LIVE_LATENCY_TARGET
from aiosollol.core.scheduling.planner import (
    BatchShape,
    Plan,
    PlanOptions,
    plan,
)
from aiosollol.core.scheduling.token_counts import Answer
from aiosollol.core.scheduling.vector_buffer import OnVectors, VectorBuffer
from aiosollol.core.truncation import Counted, context_limit, cut_texts
from aiosollol.errors import (
    EngineError,
    InvalidInput,
    PoolClosed,
    RequestFailed,
    SollolError,
)
from aiosollol.live.node_client import NodeClient

OnProgress = Callable[[int, int], None]


class _Batch(NamedTuple):
    """A running batch.

    tell: called with the number of settled texts.
    began: its start, by the cluster state's clock.
    timeout: seconds for the whole batch; None for no limit.
    """

    job: BatchJob
    buffer: VectorBuffer
    tell: Callable[[int], None] | None
    began: float
    timeout: float | None


class _Done(NamedTuple):
    """The result of a batch: errors by position, for texts without a vector, and a report."""

    errors: Mapping[int, SollolError]
    report: BatchReport


class BatchRunner:
    """Runs batches on the nodes of a pool, any number concurrently.

    node_client: sends a request to a node.
    eligibility: the eligible nodes for a model.
    engine_batches: the engines for batches that are not computed in this process.
    timeout: seconds for one request.
    outage_patience: seconds to wait while no node answers.
    live_latency_target: seconds of a chunk while there are live requests.
    plans: number of batches by mode of their plan.
    """

    def __init__(
        self,
        cluster: ClusterState,
        node_client: NodeClient,
        eligibility: Eligibility,
        engine_batches: EngineBatches,
        timeout: float,
        outage_patience: float = OUTAGE_PATIENCE,
        live_latency_target: float = LIVE_LATENCY_TARGET,
    ) -> None:
        self._outage_patience = outage_patience
        self._live_latency_target = live_latency_target
        self._cluster = cluster
        self._node_client = node_client
        self._eligibility = eligibility
        self._engine_batches = engine_batches
        self._timeout = timeout
        self.plans: Counter[str] = Counter()
        self._running: set[anyio.CancelScope] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a batch is running."""
        return bool(self._running)

    def close(self) -> None:
        """Cancel the running batches: they raise PoolClosed."""
        for scope in self._running:
            scope.cancel()

    async def plan(self, model: str, shape: BatchShape, options: PlanOptions) -> Plan:
        """The plan for a batch on the current nodes."""
        view = self._cluster.candidates(model, await self.ready_nodes(model))
        return plan(view, shape, options, self._cluster.verdicts(model))

    async def ready_nodes(self, model: str) -> Sequence[Node]:
        """The nodes eligible for a batch: up, with `model`, and with comparable vectors."""
        await self._eligibility.wait_ready(model, patient=True)
        return self._eligibility.comparable(model)

    async def embed(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        invalid: Mapping[int, InvalidInput],
        options: PlanOptions,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        engine: str = "auto",
        on_vectors: OnVectors | None = None,
        priority: int = LOW,
    ) -> Embeddings:
        """Vectors for `texts`, except for those that are `invalid`; failures are in ``.errors``.

        invalid: errors by index, for texts that cannot be sent.
        on_progress: called with (settled, total).
        timeout: seconds for the whole batch; texts not done by then fail.
        engine: where to compute, see `core.offload.engine_choice.choose`.
        on_vectors, priority: see `OllamaPool.embed_batch`.

        Raises PoolClosed, ModelNotFound, NoNodeAvailable or EngineError.
        """
        began = self._cluster.clock()
        unique = unique_texts(texts, invalid)
        buffer = VectorBuffer(len(texts), unique.places, unique.repeats, on_vectors)
        errors: dict[int, SollolError] = dict(invalid)
        report = BatchReport(len(texts), len(unique.texts), 0.0)
        if unique.texts:
            job = await self._job(settings, unique, options, priority)
            tell = _counting_rows(unique, len(invalid), len(texts), on_progress)
            done = await self._compute(_Batch(job, buffer, tell, began, timeout), engine)
            for entry, error in done.errors.items():
                errors.update(dict.fromkeys(buffer.rows_of(entry), error))
            report = replace(done.report, items=report.items, unique=report.unique)
        for row in errors:
            buffer.clear_row(row)
        return Embeddings(
            buffer.finish(),
            buffer.dim,
            errors=dict(sorted(errors.items())),
            report=replace(report, seconds=self._cluster.clock() - began),
            count=len(texts),
        )

    async def _compute(self, batch: _Batch, engine: str) -> _Done:
        job = batch.job
        note = self._engine_batches.choose(engine, len(job.texts), job.plan.predicted_seconds)
        if note.name != LOCAL:
            try:
                return await self._carry(batch, note)
            except EngineError as error:
                if engine != "auto":
                    raise
                note = self._engine_batches.instead(note, error)
        executor = Executor(job, batch.buffer, self._cluster, self._node_client, batch.tell)
        with self._engine_batches.timing(LOCAL, len(job.texts), job.plan.predicted_seconds):
            await self._run(batch, executor.run, executor.give_up)
        state = executor.state
        report = BatchReport(
            items=0,
            unique=0,
            seconds=0.0,
            nodes=executor.shares(self._cluster.clock() - batch.began),
            plan=executor.plan,
            splits=state.failures.splits,
            copies=state.copies,
            tokens=executor.counts.total,
            tokens_are_exact=executor.counts.is_exact,
            truncated=self._truncated(job, executor.counts.answers),
            findings=tuple(state.findings),
            slices=tuple(state.slices),
            engine=note,
        )
        return _Done(state.errors, report)

    async def _carry(self, batch: _Batch, note: EngineNote) -> _Done:
        """Run a batch on an engine. Raises EngineError if it cannot start."""
        job = batch.job
        order = EngineJob(
            job.settings,
            job.texts,
            job.tokens,
            job.options,
            job.plan.predicted_seconds,
            job.timeout,
            job.digest,
        )
        delivery = self._engine_batches.begin(note.name, order, batch.buffer, batch.tell)
        with self._engine_batches.timing(note.name, len(job.texts), job.plan.predicted_seconds):
            await self._run(batch, delivery.run, delivery.give_up)
        outcome = delivery.outcome
        counted = sum(share.tokens for share in outcome.nodes.values())
        report = BatchReport(
            items=0,
            unique=0,
            seconds=0.0,
            nodes=outcome.nodes,
            plan=job.plan,
            splits=outcome.splits,
            copies=outcome.copies,
            tokens=round(counted * _times_repeated(job)),
            tokens_are_exact=not job.times,
            truncated=outcome.truncated,
            engine=outcome.note(note),
        )
        return _Done(delivery.errors, report)

    def _truncated(self, job: BatchJob, answers: Iterable[Answer]) -> int:
        """The number of texts that appear to have been cut."""
        settings, times = job.settings, job.times or {}
        if settings.truncate is False:
            return 0  # the servers were asked to refuse them
        num_ctx = (settings.options or {}).get("num_ctx")
        by_node: dict[str, list[Answer]] = {}
        for answer in answers:
            if answer.is_counted:
                by_node.setdefault(answer.node, []).append(answer)
        cut = 0
        for name, counted in by_node.items():
            state = self._cluster[name].state if name in self._cluster else None
            limit = context_limit(state, settings.model, num_ctx) if state is not None else 0
            requests = [
                Counted([job.texts[item] for item in answer.items], round(answer.tokens))
                for answer in counted
            ]
            for answer, places in zip(counted, cut_texts(requests, limit), strict=True):
                cut += sum(times.get(answer.items[place], 1) for place in places)
        return cut

    async def _job(
        self, settings: EmbedSettings, unique: Unique, options: PlanOptions, priority: int
    ) -> BatchJob:
        ratio = self._cluster.ratio(settings.model)
        tokens = ratio.tokens_each(unique.texts)
        shape = BatchShape(len(tokens), sum(tokens))
        planned = await self.plan(settings.model, shape, options)
        self.plans[planned.mode.value] += 1
        digest = self._eligibility.digest_in_use(settings.model)
        times = {entry: 1 + len(rows) for entry, rows in unique.repeats.items()}
        return BatchJob(
            settings,
            unique.texts,
            tokens,
            self._timeout,
            planned,
            options,
            digest,
            patience=self._outage_patience,
            times=times,
            priority=priority,
            live_latency_target=self._live_latency_target,
        )

    async def _run(
        self,
        batch: _Batch,
        work: Callable[[], Awaitable[None]],
        give_up: Callable[[SollolError], None],
    ) -> None:
        """Run a batch until its timeout. Raises PoolClosed if the pool is closed."""
        timeout = batch.timeout
        deadline = math.inf if timeout is None else batch.began + timeout

        async def in_time() -> None:
            with anyio.move_on_after(deadline - self._cluster.clock()) as limit:
                await work()
            if limit.cancelled_caught:
                give_up(RequestFailed(f"the batch was not done within {timeout:g} s"))

        await self.until_closed(in_time)

    async def until_closed(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` as a batch. Raises PoolClosed if `close` cancels it."""
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                await work()
            finally:
                self._running.discard(scope)
        if scope.cancelled_caught:
            raise PoolClosed("the pool was closed during this batch")


def _times_repeated(job: BatchJob) -> float:
    """Estimated tokens of all texts, over those of the distinct ones."""
    more = sum((count - 1) * job.tokens[item] for item, count in (job.times or {}).items())
    return 1.0 + more / (sum(job.tokens) or 1.0)


def _counting_rows(
    unique: Unique, invalid: int, rows: int, on_progress: OnProgress | None
) -> Callable[[int], None] | None:
    """Convert progress in distinct texts into progress in rows for the caller."""
    if on_progress is None:
        return None
    rows_per_text = (rows - invalid) / len(unique.texts)

    def tell(settled: int) -> None:
        on_progress(invalid + int(settled * rows_per_text + 0.5), rows)

    return tell
