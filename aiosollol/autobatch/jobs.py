"""The status of jobs, and the outcome of a batch: done, failed, or to be retried. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from aiosollol.autobatch.pacing import DOCUMENT_BACKOFF, delay
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.redaction import summary
from aiosollol.core.routing.retry import Failure, classify
from aiosollol.errors import (
    InvalidInput,
    ModelNotFound,
    NodeError,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
)

State = Literal["pending", "running", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """The status of a job. Times are seconds since the epoch.

    job_id, model, settings, metadata: as submitted.
    total: number of documents. Each one is `queued`, `completed` or `failed`, or was dropped when
        the job was cancelled.
    completed_at: when the last document was completed or failed, or the job was cancelled.
    expires_at: when the job is deleted.
    eta: estimated seconds until it is done, or None.
    owner: the owner of the job; None for a job without one.
    """

    job_id: str
    model: str
    total: int
    created_at: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    queued: int = 0
    completed: int = 0
    failed: int = 0
    is_cancelled: bool = False
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    eta: float | None = None
    now: float = 0.0
    owner: str | None = None

    @property
    def state(self) -> State:
        """ "completed" if any document has its vector, "failed" if none has one."""
        if self.is_cancelled:
            return "cancelled"
        if self.queued:
            return "pending" if self.started_at is None else "running"
        return "completed" if self.completed or not self.failed else "failed"

    @property
    def is_over(self) -> bool:
        """Whether none of its documents is queued."""
        return not self.queued

    @property
    def seconds(self) -> float | None:
        """Seconds from its first batch until now, or its end; None before that batch."""
        if self.started_at is None:
            return None
        until = self.now if self.completed_at is None else self.completed_at
        return max(0.0, until - self.started_at)

    @property
    def rate(self) -> float | None:
        """Documents completed or failed per second since its first batch."""
        seconds = self.seconds
        return (self.completed + self.failed) / seconds if seconds else None

    def as_dict(self) -> dict[str, Any]:
        """The status for JSON, with the names of the original's batch jobs, and a few more.

        ``owner`` is present only if the job has one.
        """
        return {
            "job_id": self.job_id,
            "job_type": "embed",
            "status": self.state,
            "created_at": iso(self.created_at),
            "started_at": iso(self.started_at),
            "completed_at": iso(self.completed_at),
            "progress": {
                "total_items": self.total,
                "completed_items": self.completed,
                "failed_items": self.failed,
                "queued_items": self.queued,
                "percent": round(100.0 * self.completed / self.total, 2) if self.total else 0.0,
            },
            "duration_seconds": self.seconds,
            "documents_per_second": self.rate,
            "eta_seconds": self.eta,
            "expires_at": iso(self.expires_at),
            "metadata": {**self.metadata, "model": self.model},
            **({} if self.owner is None else {"owner": self.owner}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """The status of all jobs, or of all jobs of one owner.

    jobs: the latest jobs.
    job_count: number of jobs kept.
    job_total: number of jobs ever submitted; with an owner, the jobs kept.
    active, pending: number of unfinished jobs that have begun, and that have not.
    queued, queued_bytes: number and size of the queued documents of these jobs.
    max_documents, max_bytes: the limits of the queue.
    keep_results: seconds that a job is kept after its end.
    rate: recent documents per second; 0 if unknown.
    eta: estimated seconds until no document of these jobs is queued, or None.
    worker: the pid of the process that embeds, or None.
    is_worker: whether this object embeds.
    problem: why this object cannot embed them now; empty if it can.
    ahead: documents queued up to the last of these jobs, including other owners'; None means
        `queued`.
    """

    jobs: Sequence[JobStatus]
    job_count: int
    job_total: int
    active: int
    pending: int
    queued: int
    queued_bytes: int
    max_documents: int
    max_bytes: int
    keep_results: float
    rate: float = 0.0
    worker: int | None = None
    is_worker: bool = False
    problem: str = ""
    ahead: int | None = None

    @property
    def eta(self) -> float | None:
        ahead = self.queued if self.ahead is None else self.ahead
        return ahead / self.rate if self.rate > 0.0 else None

    def as_dict(self) -> dict[str, Any]:
        """The status for JSON, with the original's names where it has one."""
        return {
            "jobs": [job.as_dict() for job in self.jobs],
            "total": self.job_count,
            "total_jobs_created": self.job_total,
            "active_jobs": self.active,
            "pending_jobs": self.pending,
            "stored_jobs": self.job_count,
            "job_ttl_seconds": self.keep_results,
            "queued_documents": self.queued,
            "queued_bytes": self.queued_bytes,
            "max_documents": self.max_documents,
            "max_bytes": self.max_bytes,
            "documents_per_second": self.rate or None,
            "eta_seconds": self.eta,
            "worker": {
                "pid": self.worker,
                "is_here": self.is_worker,
                "problem": self.problem or None,
            },
        }


def iso(seconds: float | None) -> str | None:
    """A time as ISO 8601 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


Verdict = Literal["fail", "count", "wait", "missing"]


class Document(NamedTuple):
    """A queued document.

    text: None if it is damaged on the disk.
    attempts: number of failed attempts.
    size: bytes of its text.
    """

    key: int
    text: str | None
    attempts: int
    size: int


class RetriedDocument(NamedTuple):
    """A document to retry at `due_at`, in seconds since the epoch."""

    document: Document
    due_at: float
    error: str


class FailedDocument(NamedTuple):
    document: Document
    error: str


@dataclass(slots=True)
class Outcome:
    """The outcome of a batch, to be stored. Documents in none of the lists stay queued unchanged.

    wait: why no node can embed documents now, or "".
    missing: why no node can embed them until one gets the model, or "".
    log: `wait` or `missing` in a form without content, for logs.
    """

    done: list[tuple[Document, Vector]] = field(default_factory=list)
    failed: list[FailedDocument] = field(default_factory=list)
    again: list[RetriedDocument] = field(default_factory=list)
    wait: str = ""
    missing: str = ""
    log: str = ""


def judge(error: Exception) -> Verdict:
    """What a failure means for a document.

    "fail": its text or settings are invalid, so it would always fail.
    "count": the document may be the cause, so it is retried a limited number of times.
    "wait": the document is not the cause.
    "missing": the document is not the cause: every node answers, and none has the model.
    """
    if isinstance(error, InvalidInput):
        return "fail"
    if isinstance(error, ModelNotFound):
        return "wait" if error.silent else "missing"  # a silent node may have it
    if isinstance(error, NoNodeAvailable | PoolClosed | PoolSaturated):
        return "wait"
    if isinstance(error, NodeError):
        kind = classify(error)
        if kind is Failure.INPUT:
            return "fail"
        return "count" if kind is Failure.ANSWER else "wait"
    return "count"


def outcome(
    documents: Sequence[Document], result: Embeddings | Exception, now: float, max_attempts: int
) -> Outcome:
    """The outcome of `documents`.

    result: the pool's result or exception for them.
    now: seconds since the epoch.
    max_attempts: failures of a document after which it is not retried.
    """
    found = Outcome()
    for row, document in enumerate(documents):
        error = result if isinstance(result, Exception) else result.errors.get(row)
        if error is None:
            assert isinstance(result, Embeddings)
            found.done.append((document, result[row]))
            continue
        match judge(error):
            case "fail":
                found.failed.append(FailedDocument(document, words(error)))
            case "wait":
                found.wait, found.log = words(error), summary(error)
            case "missing":
                found.missing, found.log = words(error), summary(error)
            case "count":
                attempts = document.attempts + 1
                tried = document._replace(attempts=attempts)
                if attempts >= max_attempts:
                    found.failed.append(
                        FailedDocument(tried, f"{words(error)} (tried {attempts} times)")
                    )
                else:
                    due_at = now + delay(attempts, DOCUMENT_BACKOFF)
                    found.again.append(RetriedDocument(tried, due_at, words(error)))
    return found


def words(error: Exception) -> str:
    """`error` as stored: its type and message, at most 1,000 characters."""
    return f"{type(error).__name__}: {error}"[:1000]
