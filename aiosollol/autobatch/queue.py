"""`AutoBatch`: a durable queue of documents to embed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from aiosollol.autobatch import job_queries, result_queries
from aiosollol.autobatch.database import Database
from aiosollol.autobatch.job_queries import new_job
from aiosollol.autobatch.jobs import JobStatus, QueueStatus
from aiosollol.autobatch.pacing import (
    DAY,
    GIB,
    LOOK_SECONDS,
    OWNER_BYTES,
    OWNER_DOCUMENTS,
    OWNER_JOBS,
    Clock,
    Rules,
    SystemClock,
)
from aiosollol.autobatch.result_queries import ResultPage
from aiosollol.autobatch.worker import QueueWorker
from aiosollol.core.arguments import SubmitArguments
from aiosollol.core.offload.engine_choice import EngineName
from aiosollol.errors import InvalidInput, PoolClosed
from aiosollol.net.primitives import finish

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool

STOP_SECONDS = 10.0
LOCK_SECONDS = 5.0


class AutoBatch:
    """A queue of documents in a file, and a worker that embeds them with a pool.

    Use it with ``async with``, or `start` it and `aclose` it. When `submit` returns an id, the job
    is on the disk: it is embedded once, even if this process is killed at any moment and another
    one continues later. Any number of processes may use one file; one of them embeds, and another
    takes over when it ends.

    A job may have an owner, which is any text. Given `owner`, a method sees only the jobs of that
    owner: other jobs raise UnknownJob, and are neither listed nor counted. Without `owner` it sees
    all jobs.

    pool: an open pool, which is not closed here; with None, the queue only submits and reads.
    path: of the file, on a local disk; created if there is none.
    interval: a batch begins when a node is idle, or else every `interval` seconds.
    min_batch_size: fewer documents wait for more, up to `interval` seconds.
    max_batch_size: the most documents in a batch.
    keep_results: seconds that a job is kept after its end.
    max_documents, max_bytes: limits of the queue over all jobs.
    owner_documents, owner_bytes: limits of what one owner has queued.
    owner_jobs: the most jobs of one owner, finished ones that are still kept included.
    max_attempts: attempts for a document that fails for another reason than its text.
    engine: where to compute, see `OllamaPool.embed_batch`; in this process while that engine is
        unavailable.
    clock: the source of time, for tests.
    lock_seconds: how long to wait for other processes that write.

    Raises InvalidInput.
    """

    def __init__(
        self,
        pool: OllamaPool | None,
        path: str | os.PathLike[str],
        *,
        interval: float = 60.0,
        min_batch_size: int = 1,
        max_batch_size: int = 100,
        keep_results: float = DAY,
        max_documents: int = 1_000_000,
        max_bytes: int = GIB,
        owner_documents: int = OWNER_DOCUMENTS,
        owner_bytes: int = OWNER_BYTES,
        owner_jobs: int = OWNER_JOBS,
        max_attempts: int = 5,
        engine: EngineName = "auto",
        clock: Clock | None = None,
        lock_seconds: float = LOCK_SECONDS,
    ) -> None:
        self._rules = Rules(
            interval=interval,
            min_batch_size=min_batch_size,
            max_batch_size=max_batch_size,
            keep_results=keep_results,
            max_documents=max_documents,
            max_bytes=max_bytes,
            owner_documents=owner_documents,
            owner_bytes=owner_bytes,
            owner_jobs=owner_jobs,
            max_attempts=max_attempts,
            engine=engine,
        )
        self._pool = pool
        self.path = os.fspath(path)
        self._clock = SystemClock() if clock is None else clock
        self._lock_seconds = lock_seconds
        self._database: Database | None = None
        self._worker: QueueWorker | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._state: Literal["new", "open", "closed"] = "new"
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<AutoBatch {self._state}: {self.path}>"

    # Life cycle.

    async def __aenter__(self) -> AutoBatch:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Open the file, and start embedding its queued documents. Idempotent.

        Raises ConfigError if the file cannot be a queue, StorageError if it is damaged, locked or
        not writable, and PoolClosed if this was closed.
        """
        if self._state == "closed":
            raise PoolClosed("the queue was closed; make a new one")
        if self._state == "open":
            return
        database = Database(self.path, lock_seconds=self._lock_seconds)
        try:
            await database.open()
        except BaseException:
            await database.aclose()
            raise
        self._database = database
        self._state = "open"
        if self._pool is not None:
            self._worker = QueueWorker(self._pool, database, self._rules, self._clock, self._tell)
            self._task = asyncio.create_task(self._worker.run(), name="autobatch")

    async def aclose(self, timeout: float = STOP_SECONDS) -> None:
        """Finish the current batch, and close the file. Idempotent.

        timeout: seconds for that batch; after that it is cancelled, and repeated at the next start.
        """
        self._state = "closed"
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(timeout), name="close autobatch")
        await finish(self._closing)

    async def _close(self, timeout: float) -> None:
        if self._worker is not None and self._task is not None:
            self._worker.stop()
            await asyncio.wait([self._task], timeout=timeout)
            self._task.cancel()
            await asyncio.wait([self._task])
            await self._worker.let_go()
        self._tell()
        if self._database is not None:
            await self._database.aclose()

    # Submitting.

    async def submit(
        self,
        docs: Sequence[str],
        model: str,
        **given: Unpack[SubmitArguments],
    ) -> str:
        """Queue documents, all or none, and return the id of their job once they are on the disk.

        dimensions, truncate, options, keep_alive: as for `OllamaPool.embed_batch`.
        metadata: JSON values that `status` returns; like options at most 64 KiB, nested 64 deep.
        owner: the job's owner; stored as it is, so it must not be a secret.

        Raises InvalidInput, LimitExceeded for a job that can never fit, QueueFull with
        `retry_after`, and StorageError.
        """
        database = self._open_database()
        job = new_job(docs, model, **given)
        await database.change(job_queries.submit, job, self._rules, self._clock.now())
        self._tell()
        return job.id

    async def cancel(self, job: str, *, owner: str | None = None) -> JobStatus:
        """Drop the queued documents of a job. Its vectors are kept for the usual time.

        Results of a batch in progress are not stored. Raises UnknownJob, StorageError.
        """
        await self._open_database().change(job_queries.cancel, job, owner, self._clock.now())
        self._tell()
        return await self.status(job, owner=owner)

    async def retry(self, job: str, *, owner: str | None = None) -> int:
        """Queue the failed documents of a job again; returns their number.

        Raises UnknownJob, QueueFull, StorageError, and InvalidInput if the job was cancelled.
        """
        count = await self._open_database().change(
            job_queries.retry, job, owner, self._rules, self._clock.now()
        )
        self._tell()
        return count

    def update(
        self,
        *,
        interval: float | None = None,
        min_batch_size: int | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Change when batches begin, from now on. Raises InvalidInput without changing anything."""
        given = {
            "interval": interval,
            "min_batch_size": min_batch_size,
            "max_batch_size": max_batch_size,
        }
        changes: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
        self._rules = replace(self._rules, **changes)
        if self._worker is not None:
            self._worker.rules = self._rules
            self._worker.wake()

    # Results.

    @overload
    async def status(self, job: str, *, owner: str | None = None) -> JobStatus: ...
    @overload
    async def status(
        self, job: None = None, *, latest: int = 100, owner: str | None = None
    ) -> QueueStatus: ...
    async def status(
        self, job: str | None = None, *, latest: int = 100, owner: str | None = None
    ) -> JobStatus | QueueStatus:
        """The status of a job, or of all jobs. latest: how many jobs to list, the last ones first.

        Raises UnknownJob, StorageError.
        """
        database, rules, now = self._open_database(), self._rules, self._clock.now()
        if job is not None:
            return await database.read(
                result_queries.job_status, job, owner, now, rules.keep_results
            )
        found, groups = await database.read(result_queries.totals, owner, latest, now, rules)
        worker = self._worker
        if worker is None:
            return found
        problem = worker.problem if owner is None else worker.problem_of(groups)
        return replace(found, is_worker=worker.is_working, problem=problem)

    async def wait(self, job: str, *, owner: str | None = None) -> JobStatus:
        """Wait until no document of a job is queued, in whichever process, and return its status.

        Raises UnknownJob, StorageError, and PoolClosed if this is closed meanwhile.
        """
        while True:
            changed = self._changed
            status = await self.status(job, owner=owner)
            if status.is_over:
                return status
            await self._clock.wait(changed, LOOK_SECONDS)

    async def results(
        self, job: str, *, page_size: int = 256, owner: str | None = None
    ) -> AsyncIterator[ResultPage]:
        """The completed and failed documents of a job, page by page, in order.

        Queued documents of an unfinished job are left out.

        page_size: the most documents of the job that a page covers.

        Raises UnknownJob, StorageError, InvalidInput.
        """
        if not isinstance(page_size, int) or page_size < 1:
            raise InvalidInput(f"page_size must be a whole number of at least 1, not {page_size!r}")
        start: int | None = 0
        while start is not None:
            page, start = await self._open_database().read(
                result_queries.page, job, owner, start, page_size
            )
            if page.indices or page.errors:
                yield page

    # Internals.

    def _open_database(self) -> Database:
        if self._state == "open" and self._database is not None:
            return self._database
        if self._state == "closed":
            raise PoolClosed("the queue is closed")
        raise PoolClosed("the queue is not open yet: use 'async with', or await queue.start()")

    def _tell(self) -> None:
        """Notify the worker and the waiting callers of a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._worker is not None:
            self._worker.wake()
