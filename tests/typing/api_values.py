"""Values of the public API, as a type checker sees them. mypy reads this file; it is never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import assert_type

import aiosollol
from aiosollol import (
    BatchError,
    BatchReport,
    Embeddings,
    FaultKind,
    ModelNotFound,
    NodeError,
    NodeShare,
    NodeUnavailable,
    NoNodeAvailable,
    Plan,
    RequestFailed,
    ResponseError,
    SollolError,
    Vector,
)
from aiosollol.autobatch import AutoBatch, JobStatus, QueueStatus, ResultPage
from aiosollol.core.scheduling.colocation import Finding


def embeddings(vectors: Embeddings) -> None:
    assert_type(vectors[0], Vector)
    assert_type(vectors[1:3], Embeddings)
    assert_type(iter(vectors), Iterator[Vector])
    assert_type(len(vectors), int)
    assert_type(vectors.dim, int)
    assert_type(vectors.tolist(), list[list[float]])
    assert_type(vectors.tobytes(), bytes)
    assert_type(vectors.buffer, Vector)
    assert_type(vectors.errors, dict[int, SollolError])
    assert_type(vectors.report, BatchReport | None)


def report(done: BatchReport) -> None:
    assert_type(done.items, int)
    assert_type(done.seconds, float)
    assert_type(done.predicted_seconds, float)
    assert_type(done.plan, Plan | None)
    assert_type(done.retries, int)
    assert_type(done.requests, int)
    assert_type(done.splits, int)
    assert_type(done.copies, int)
    assert_type(done.tokens, int)
    assert_type(done.tokens_are_exact, bool)
    assert_type(done.truncated, int)
    assert_type(done.findings, Sequence[Finding])
    assert_type(done.nodes, Mapping[str, NodeShare])
    done.to_trace("batch.json")
    done.to_trace(Path("batch.json"))


def share(of_node: NodeShare) -> None:
    assert_type(of_node.items, int)
    assert_type(of_node.requests, int)
    assert_type(of_node.tokens, int)
    assert_type(of_node.seconds, float)
    assert_type(of_node.idle, float)
    assert_type(of_node.wasted, float)
    assert_type(of_node.retries, int)


def finding(measured: Finding) -> None:
    assert_type(measured.first, str)
    assert_type(measured.second, str)
    assert_type(measured.alone, float)
    assert_type(measured.together, float)
    assert_type(measured.is_faster_together, bool)


def limits(error: aiosollol.LimitExceeded) -> None:
    assert_type(error.limit, str)


def errors(
    batch: BatchError, none_left: NoNodeAvailable, missing: ModelNotFound, failed: RequestFailed
) -> None:
    assert_type(batch.embeddings, Embeddings)
    assert_type(batch.errors, dict[int, SollolError])
    assert_type(none_left.nodes, dict[str, str])
    assert_type(missing.nodes, dict[str, tuple[str, ...]])
    assert_type(failed.attempts, tuple[NodeError, ...])


def answers_of_nodes(answer: ResponseError, unavailable: NodeUnavailable) -> None:
    assert_type(answer.status, int)
    assert_type(answer.message, str)
    assert_type(answer.fault, FaultKind | None)
    assert_type(answer.is_known, bool)
    assert_type(answer.retry_after, float | None)
    assert_type(unavailable.retry_after, float | None)


async def queued(queue: AutoBatch) -> None:
    job = await queue.submit(["a"], "nomic-embed-text", metadata={"source": "wiki"}, owner="ann")
    assert_type(job, str)
    assert_type(await queue.status(job, owner="ann"), JobStatus)
    assert_type(await queue.status(latest=10, owner="ann"), QueueStatus)
    assert_type(await queue.wait(job, owner="ann"), JobStatus)
    assert_type(await queue.cancel(job, owner="ann"), JobStatus)
    assert_type(await queue.retry(job, owner="ann"), int)
    assert_type((await queue.status(job)).owner, str | None)
    async for page in queue.results(job, page_size=10, owner="ann"):
        assert_type(page, ResultPage)


def version() -> None:
    assert_type(aiosollol.__version__, str)
