"""`QueueWorker`: takes documents from a queue, embeds them, and stores the results."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiosollol.autobatch import worker_queries
from aiosollol.autobatch.database import Database, WorkerLock, told_as_ours
from aiosollol.autobatch.jobs import FailedDocument, Outcome, outcome
from aiosollol.autobatch.pacing import (
    DOCUMENT_BACKOFF,
    LOOK_SECONDS,
    NODE_BACKOFF,
    BatchPacing,
    Clock,
    Rules,
    delay,
)
from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import EngineError, SollolError, StorageError
from aiosollol.net.error_log import origin_of

if TYPE_CHECKING:
    from aiosollol.pool.facade import OllamaPool

log = logging.getLogger("aiosollol")

_EXPIRE_SECONDS = 60.0
_DAMAGED_TEXT = "StorageError: the text is damaged on the disk; submit this document again"


class QueueWorker:
    """Embeds queued documents while `run` runs and it holds the queue's lock.

    rules: may be changed at any time.
    told: called when documents were settled, that is embedded or failed.
    """

    def __init__(
        self,
        pool: OllamaPool,
        database: Database,
        rules: Rules,
        clock: Clock,
        told: Callable[[], None],
    ) -> None:
        self.rules = rules
        self._pool = pool
        self._database = database
        self._clock = clock
        self._told = told
        self._lock = WorkerLock(database.path)
        self._pace = BatchPacing()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._failures = 0
        self._trouble = ""  # of the file
        self._engine_trouble = ""
        self._troubles: dict[int, str] = {}  # of the pool with a group
        self._is_clean = False
        self._expired_at: float | None = None
        self._settled_at: float | None = None  # None if there was nothing to do since then

    @property
    def is_working(self) -> bool:
        """Whether this worker embeds for the queue, and not another one."""
        return self._lock.is_held

    @property
    def problem(self) -> str:
        """Why it cannot embed some documents; empty if it can."""
        return self._trouble or "; ".join(dict.fromkeys(self._troubles.values()))

    def problem_of(self, groups: Collection[int]) -> str:
        """The part of `problem` about these groups; it never names the file."""
        if self._trouble:
            return "the queue does not work at the moment; see the log"
        found = (words for group, words in self._troubles.items() if group in groups)
        return "; ".join(dict.fromkeys(found))

    def wake(self) -> None:
        """Check the queue at once: documents were queued, or the rules were changed."""
        self._wake.set()

    def stop(self) -> None:
        """End `run` after the current batch."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Embed queued documents until `stop`. No error ends it earlier."""
        while not self._is_stopping:
            self._wake.clear()
            seconds = await self._survive()
            if seconds > 0.0 and not self._is_stopping:
                await self._clock.wait(self._wake, seconds)

    async def let_go(self) -> None:
        """Let another worker take over. Call it only after `run` has ended."""
        # In the thread, so after a pending `acquire` of a cancelled `run`.
        if await self._database.call(lambda: self._lock.is_held):
            with contextlib.suppress(StorageError):
                await self._database.change(worker_queries.begin_work, None)
            await self._database.call(self._lock.release)

    async def _survive(self) -> float:
        """Do one step; return the seconds until the next. Failures are logged and retried."""
        try:
            seconds = await self._step()
        except StorageError as error:
            self._note_trouble(str(error))
        except Exception as error:
            # A bug. Raising here would stop the queue until the next start.
            place = origin_of(error)  # not its message, which may quote a document
            log.error("autobatch failed, which is a bug: %s", place)  # noqa: TRY400
            self._note_trouble(f"{type(error).__name__}, see the log")
        else:
            self._failures = 0
            self._trouble = ""
            return seconds
        self._failures += 1
        return delay(self._failures, NODE_BACKOFF)

    def _note_trouble(self, words: str) -> None:
        if words != self._trouble:
            log.warning("autobatch: %s", words)
        self._trouble = words

    def _note_trouble_of(self, group: int, words: str, for_log: str) -> None:
        if words and words not in self._troubles.values():
            log.warning("autobatch: %s", for_log)
        self._troubles[group] = words

    async def _step(self) -> float:
        if not self.is_working and not await self._begin():
            return LOOK_SECONDS
        is_clean = await self._clear_away()
        most = self.rules.max_batch_size
        lines = await self._database.read(worker_queries.lines, most, self._clock.now())
        known = self._troubles.items()
        self._troubles = {g: words for g, words in known if words and g in {x.group for x in lines}}
        turn = self._pace.choose(lines, self._clock.monotonic(), self.rules, self._is_idle)
        if turn.group is None:
            if not any(line.ready for line in lines):
                self._settled_at = None
            return turn.seconds if is_clean else 0.0
        batch = await self._database.change(
            worker_queries.take, turn.group, most, self._clock.now()
        )
        await self._carry_out(batch)
        return 0.0

    async def _begin(self) -> bool:
        """Become the queue's worker, unless there is another one."""

        def acquire() -> bool:
            with told_as_ours(self._database.path):
                return self._lock.acquire()

        if not await self._database.call(acquire):
            return False
        await self._database.change(worker_queries.begin_work, os.getpid())
        return True

    def _is_idle(self, model: str) -> bool:
        """Whether a node with `model` is idle; True if no node is known to have it.

        Then the pool decides how long to wait for nodes, and which error to raise.
        """
        nodes = self._pool.view.having(model)
        if not nodes:
            return True
        stats = self._pool.get_stats()["node_performance"]
        return any(stats[node.spec.key]["active_requests"] == 0 for node in nodes)

    async def _carry_out(self, batch: worker_queries.Batch) -> None:
        began = self._clock.monotonic()
        found = Outcome()
        if batch.documents:
            result = await self._embed(batch)
            now = self._clock.now()
            found = outcome(batch.documents, result, now, self.rules.max_attempts)
        found.failed += [FailedDocument(document, _DAMAGED_TEXT) for document in batch.damaged]
        if found.done or found.failed or found.again:
            now = self._clock.monotonic()
            since = began if self._settled_at is None else self._settled_at
            await self._write(found, now - since)
            self._settled_at = now
        await self._hold_back(batch.group, found)

    async def _embed(self, batch: worker_queries.Batch) -> Embeddings | Exception:
        texts = [document.text or "" for document in batch.documents]
        try:
            settings = json.loads(batch.settings) | {"on_error": "return"}
            return await self._embed_by_engine(batch.model, texts, settings)
        except SollolError as error:
            return error
        except Exception as error:
            place = origin_of(error)
            log.error("autobatch: embedding failed, which is a bug: %s", place)  # noqa: TRY400
            return error

    async def _embed_by_engine(
        self, model: str, texts: Sequence[str], settings: Mapping[str, Any]
    ) -> Embeddings:
        embed, engine = self._pool.embed_batch, self.rules.engine
        try:
            result = await embed(model, texts, engine=engine, **settings)
        except EngineError as error:
            if str(error) != self._engine_trouble:
                log.warning("autobatch: %s; documents are embedded in this process", error)
            self._engine_trouble = str(error)
            return await embed(model, texts, engine="local", **settings)
        self._engine_trouble = ""
        return result

    async def _write(self, found: Outcome, seconds: float) -> None:
        """Store the outcome of a batch, retrying until it succeeds, so that no work is lost."""
        failures = 0
        while True:
            try:
                settled = await self._database.change(
                    worker_queries.settle, found, self._clock.now(), seconds
                )
            except StorageError as error:
                if self._is_stopping:
                    raise
                self._note_trouble(str(error))
                failures += 1
                self._wake.clear()
                await self._clock.wait(self._wake, delay(failures, NODE_BACKOFF))
            else:
                break
        if settled:
            self._told()

    async def _hold_back(self, group: int, found: Outcome) -> None:
        """Hold a group back if no node can embed its documents now."""
        now = self._clock.monotonic()
        if found.wait:
            self._pace.failed(group, now, NODE_BACKOFF)
        elif found.missing:
            # Trying each of its documents that often would be pointless.
            if self._pace.failed(group, now, DOCUMENT_BACKOFF) >= self.rules.max_attempts:
                await self._database.change(
                    worker_queries.fail_group, group, found.missing, self._clock.now()
                )
                self._pace.succeeded(group)
                self._told()
        else:
            self._pace.succeeded(group)
        self._note_trouble_of(group, found.wait or found.missing, found.log)

    async def _clear_away(self) -> bool:
        """Delete some data of expired jobs; return whether all is deleted."""
        now = self._clock.monotonic()
        keep = self.rules.keep_results
        if self._expired_at is None or now - self._expired_at >= min(_EXPIRE_SECONDS, keep):
            self._expired_at = now
            await self._database.change(worker_queries.expire, self._clock.now() - keep)
            self._is_clean = False
        if not self._is_clean:
            self._is_clean = not await self._database.change(worker_queries.sweep)
        return self._is_clean
