"""The worker's lock, and the tables of a queue under any sequence of operations."""

from __future__ import annotations

import contextlib
import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiosollol import (
    QueueFull,
)
from aiosollol.autobatch import (
    job_queries,
    schema,
    worker_queries,
)
from aiosollol.autobatch.database import WorkerLock
from aiosollol.autobatch.jobs import (
    FailedDocument,
    Outcome,
    RetriedDocument,
)
from aiosollol.autobatch.pacing import Rules
from aiosollol.autobatch.result_queries import totals
from aiosollol.errors import InvalidInput

pytestmark = pytest.mark.anyio


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "queue.db")
    one, two = WorkerLock(path), WorkerLock(path)
    assert one.acquire()
    assert one.acquire()
    assert not two.acquire()
    assert (one.is_held, two.is_held) == (True, False)
    one.release()
    one.release()
    assert two.acquire()
    two.release()


class Tables(RuleBasedStateMachine):
    """Anything that can be done, in any order: the counters agree with the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for statement in schema._TABLES.split(";\n"):
            self.connection.execute(statement)
        self.rules = Rules(max_documents=30, max_bytes=200)
        self.now = 0.0
        self.jobs: dict[str, int] = {}
        self.batch: worker_queries.Batch | None = None

    def teardown(self) -> None:
        self.connection.close()

    def _known(self) -> Iterator[str]:
        rows = self.connection.execute("SELECT id FROM jobs ORDER BY number")
        return (job for (job,) in rows.fetchall())

    @rule(
        count=st.integers(1, 12),
        model=st.sampled_from("ab"),
        owner=st.sampled_from(("ann", "bob", None)),
    )
    def submit(self, count: int, model: str, owner: str | None) -> None:
        name = f"job {len(self.jobs)}"
        texts = [f"text {at}" for at in range(count)]
        job = job_queries.NewJob(name, model, "{}", "{}", texts, owner)
        with contextlib.suppress(QueueFull):
            job_queries.submit(self.connection, job, self.rules, self.now)
            self.jobs[name] = count

    @rule(most=st.integers(1, 8), pick=st.integers(0, 1))
    def take(self, most: int, pick: int) -> None:
        lines = [x for x in worker_queries.lines(self.connection, most, self.now) if x.ready]
        if lines:
            line = lines[pick % len(lines)]
            self.batch = worker_queries.take(self.connection, line.group, most, self.now)
            assert len(self.batch.documents) == line.ready

    @rule(fates=st.lists(st.sampled_from("dfaw"), min_size=8, max_size=8), forget=st.booleans())
    def settle(self, fates: list[str], forget: bool) -> None:
        """Also twice, and of a batch that was cancelled meanwhile."""
        if self.batch is None:
            return
        found = Outcome()
        for document, fate in zip(self.batch.documents, fates, strict=False):
            if fate == "d":
                found.done.append((document, memoryview(array("f", [1.0, 2.0]))))
            elif fate == "f":
                found.failed.append(FailedDocument(document, "words"))
            elif fate == "a":
                found.again.append(
                    RetriedDocument(document._replace(attempts=1), self.now + 5.0, "words")
                )
        worker_queries.settle(self.connection, found, self.now, 1.0)
        if forget:
            self.batch = None

    @rule(pick=st.integers(0, 5), what=st.sampled_from(["cancel", "retry"]))
    def cancel_or_retry(self, pick: int, what: str) -> None:
        names = list(self._known())
        if names and what == "cancel":
            job_queries.cancel(self.connection, names[pick % len(names)], None, self.now)
        elif names:
            with contextlib.suppress(QueueFull, InvalidInput):
                job_queries.retry(
                    self.connection, names[pick % len(names)], None, self.rules, self.now
                )

    @rule()
    def fail_group(self) -> None:
        worker_queries.fail_group(self.connection, 1, "words", self.now)

    @rule(seconds=st.floats(0.0, 10.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def expire(self) -> None:
        worker_queries.expire(self.connection, self.now - 5.0)

    @rule()
    def sweep(self) -> None:
        worker_queries.sweep(self.connection)

    @invariant()
    def counters_agree(self) -> None:
        both = self.connection.execute(
            "SELECT count(*) FROM documents JOIN vectors USING (key)"
        ).fetchone()
        assert both == (0,)
        rows = self.connection.execute(
            "SELECT number, total, queued, queued_bytes, completed, failed, is_cancelled,"
            " completed_at FROM jobs"
        ).fetchall()
        for number, total, queued, size, completed, failed, is_cancelled, completed_at in rows:
            keys = job_queries.keys_of(number)
            of_job = "key >= ? AND key < ?"
            counted = self.connection.execute(
                "SELECT count(*) FILTER (WHERE NOT has_failed), count(*) FILTER (WHERE has_failed),"
                " total(length(text)) FILTER (WHERE NOT has_failed) FROM documents"
                f" WHERE {of_job}",
                keys,
            ).fetchone()
            assert counted == (queued, failed, size)
            found = self.connection.execute(
                f"SELECT count(*) FROM vectors WHERE {of_job}", keys
            ).fetchone()
            assert found == (completed,)
            assert is_cancelled or queued + completed + failed == total
            assert (completed_at is None) == (queued > 0)
        rules = replace(self.rules, keep_results=5.0)
        whole, _ = totals(self.connection, None, 100, self.now, rules)
        assert whole.queued <= self.rules.max_documents
        assert whole.queued_bytes <= self.rules.max_bytes
        assert whole.job_total == len(self.jobs)
        for owner in ("ann", "bob"):
            part, _ = totals(self.connection, owner, 100, self.now, rules)
            assert part.ahead is not None
            owned = [job for job in whole.jobs if job.owner == owner]
            assert part.jobs == owned
            assert part.job_count == len(owned)
            assert part.queued == sum(job.queued for job in owned) <= part.ahead <= whole.queued
            assert (part.active, part.pending) == (
                sum(job.state == "running" for job in owned),
                sum(job.state == "pending" for job in owned),
            )


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
