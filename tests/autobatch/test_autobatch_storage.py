"""The file of a queue in every kind of trouble: a clear error, and no loss of what was told to be
on the disk. And its tables under everything that is done to them: they always agree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aiosollol import (
    ConfigError,
    OllamaPool,
    QueueFull,
    SollolError,
    StorageError,
    UnknownJob,
)
from aiosollol.autobatch import (
    AutoBatch,
    job_queries,
    schema,
    worker_queries,
)
from aiosollol.autobatch.database import WorkerLock
from aiosollol.autobatch.jobs import (
    Document,
    FailedDocument,
    Outcome,
    RetriedDocument,
)
from aiosollol.autobatch.pacing import Rules
from aiosollol.autobatch.result_queries import DAMAGED_VECTOR, totals
from aiosollol.errors import InvalidInput
from aiosollol.testing import FakeModel, FakeTransport, fake_vector

pytestmark = pytest.mark.anyio

EMBED = FakeModel("nomic-embed-text", dim=16)
MODEL = "nomic-embed-text"
TEXTS = [f"text {at} of some" for at in range(200)]


def vector(text: str) -> bytes:
    return bytes(fake_vector(EMBED.digest, text, EMBED.dim))


@asynccontextmanager
async def fake_pool(
    model: FakeModel = EMBED,
) -> AsyncIterator[tuple[OllamaPool, FakeTransport]]:
    node = FakeTransport("fake", models=[model], count_texts=True)
    async with OllamaPool(["127.0.0.1:1"], transport_factory=lambda _: node) as pool:
        yield pool, node


async def run_sql(queue: AutoBatch, sql: str) -> Any:
    """What a statement gives on the connection of the queue itself, outside a transaction."""
    database = queue._open_database()
    assert database._connection is not None
    return await database.call(lambda: database._connection.execute(sql).fetchone())


async def vectors_of(queue: AutoBatch, job: str) -> tuple[dict[int, bytes], dict[int, str]]:
    found: dict[int, bytes] = {}
    errors: dict[int, str] = {}
    async for page in queue.results(job):
        found |= {at: row.tobytes() for at, row in zip(page.indices, page.vectors, strict=True)}
        errors |= page.errors
    return found, errors


# What cannot be opened.


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("folder", ConfigError, "is a folder; name a file for the queue"),
        ("pipe", ConfigError, "is not a file; name a file for the queue"),
        ("below a file", StorageError, "Not a directory"),
        ("text", StorageError, "not a database, or its beginning is damaged"),
        ("database of others", ConfigError, "is the database of another program"),
        (
            "later version",
            ConfigError,
            "has version 3 of the queue's tables, and this .* versions up to 2",
        ),
        ("name of others", ConfigError, "is the database of another program"),
    ],
)
async def test_what_cannot_be_a_queue(
    tmp_path: Path, what: str, kind: type[SollolError], words: str
) -> None:
    path = tmp_path / "queue.db"
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "below a file":
            path.write_text("text")
            path = path / "queue.db"
        case "text":
            path.write_text("this is a diary, not a database\n" * 100)
        case "database of others":
            execute(path, "CREATE TABLE diary (day TEXT)")
        case "later version":
            async with AutoBatch(None, path):
                pass
            execute(path, "PRAGMA user_version = 3")
        case "name of others":
            execute(path, "PRAGMA application_id = 7")
    before = path.read_bytes() if path.is_file() else b""
    queue = AutoBatch(None, path)
    with pytest.raises(kind, match=words) as caught:
        await queue.start()
    assert caught.value.source == str(path)  # type: ignore[attr-defined]
    assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before
    await queue.aclose()


def execute(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_what_may_not_be_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "queue.db"
    if what == "file":
        async with AutoBatch(None, path):
            pass
        os.chmod(path, 0o400)
    else:
        os.chmod(tmp_path, 0o500)
    with pytest.raises(StorageError, match="permission") as caught:
        await AutoBatch(None, path).start()
    os.chmod(tmp_path, 0o700)
    assert caught.value.reason in ("read-only", "io")


async def test_a_file_system_that_takes_nothing() -> None:
    with pytest.raises(StorageError, match=r"/proc/queue\.db: it cannot be opened") as caught:
        await AutoBatch(None, "/proc/queue.db").start()
    assert caught.value.reason == "io"


async def test_a_name_that_sqlite_would_read_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with AutoBatch(None, ":memory:") as queue:
        await queue.submit(["text"], MODEL)
    assert (tmp_path / ":memory:").stat().st_size > 0


# What goes wrong later.


async def test_a_full_disk_refuses_what_is_new_and_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with AutoBatch(None, path) as queue:
        job = await queue.submit(TEXTS, MODEL)
        (pages,) = await run_sql(queue, "PRAGMA page_count")
        await run_sql(queue, f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageError, match=r"the disk is full, .* free some space") as caught:
            await queue.submit(["x" * 100_000], MODEL)
        assert (caught.value.reason, caught.value.source) == ("full", str(path))
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert (await queue.status()).job_count == 1
        await run_sql(queue, f"PRAGMA max_page_count = {pages * 2 + 100}")
        await queue.submit(["x" * 100_000], MODEL)
        assert (await queue.status(job)).queued == len(TEXTS)


async def test_vectors_wait_for_room_and_are_not_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = FakeModel(MODEL, dim=4096)  # more than there is room for where the texts were
    async with fake_pool(large) as (pool, node):
        async with AutoBatch(None, tmp_path / "queue.db") as queue:
            job = await queue.submit(TEXTS[:20], MODEL)
        clock = StoppedClock()
        async with AutoBatch(pool, tmp_path / "queue.db", clock=clock) as queue:
            database = queue._open_database()
            change = database.change
            settlings = 0

            async def limited(function: Any, *args: Any, **kwargs: Any) -> Any:
                nonlocal settlings
                settlings += function is worker_queries.settle
                is_full = function is worker_queries.settle and settlings < 4

                def run(connection: sqlite3.Connection) -> Any:
                    most = 1 if is_full else 100_000  # 1: no more than there are already
                    connection.execute(f"PRAGMA max_page_count = {most}")
                    return function(connection, *args, **kwargs)

                return await change(run)

            database.change = limited  # type: ignore[method-assign]
            status = await queue.wait(job)
            assert (status.completed, settlings) == (20, 4)
            found, _ = await vectors_of(queue, job)
            assert found == {
                at: bytes(fake_vector(large.digest, text, large.dim))
                for at, text in enumerate(TEXTS[:20])
            }
        assert sum(node.embedded.values()) == 20
    assert caplog.text.count("the disk is full") == 1


class StoppedClock:
    """Nobody waits, and no time passes."""

    def __init__(self) -> None:
        self.waits = 0

    def now(self) -> float:
        return 1_000_000.0

    def monotonic(self) -> float:
        return 0.0

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        self.waits += 1
        await asyncio.sleep(0)


LIMITED = """
import asyncio, resource, sys
from aiosollol import StorageError
from aiosollol.autobatch import AutoBatch

async def main():
    async with AutoBatch(None, sys.argv[1]) as queue:
        kept = [await queue.submit(["some text"] * 10, "m")]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            while True:
                kept.append(await queue.submit(["some text"] * 100, "m"))
        except StorageError as error:
            print(error.reason, len(kept), (await queue.status()).job_count)

asyncio.run(main())
"""


def submit_until_it_fails(path: Path) -> tuple[str, int, int]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.stderr
    reason, kept, there = done.stdout.split()
    return reason, int(kept), int(there)


async def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    reason, kept, there = submit_until_it_fails(path)
    assert reason in ("full", "io")
    assert kept == there > 1
    async with AutoBatch(None, path) as queue:
        status = await queue.status()
        assert (status.job_count, status.queued) == (kept, 10 + 100 * (kept - 1))


async def test_another_process_that_writes_for_long(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with AutoBatch(None, path, lock_seconds=0.01) as queue:
        job = await queue.submit(["one"], MODEL)
        other = await locked(queue, path)
        with pytest.raises(StorageError, match="another process has been writing") as caught:
            await queue.submit(["two"], MODEL)
        assert caught.value.reason == "locked"
        assert (await queue.status(job)).queued == 1  # to read is possible meanwhile
        await queue._open_database().call(other.close)
        await queue.submit(["two"], MODEL)
        assert (await queue.status()).queued == 2


async def locked(queue: AutoBatch, path: Path) -> sqlite3.Connection:
    def lock() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    return await queue._open_database().call(lock)


async def test_a_worker_survives_a_locked_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "queue.db"
    async with AutoBatch(None, path) as submitter, fake_pool() as (pool, node):
        job = await submitter.submit(TEXTS, MODEL)
        other = await locked(submitter, path)
        clock = StoppedClock()
        async with AutoBatch(pool, path, clock=clock, lock_seconds=0.0) as queue:
            while not (await queue.status()).problem:
                await asyncio.sleep(0)
            assert "another process has been writing" in (await queue.status()).problem
            await submitter._open_database().call(other.close)
            assert (await queue.wait(job)).completed == len(TEXTS)
            assert (await queue.status()).problem == ""
        assert sum(node.embedded.values()) == len(TEXTS)
    assert caplog.text.count("another process has been writing") == 1  # logged once for all tries


async def test_a_file_that_became_read_only(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        job = await queue.submit(["one"], MODEL)
        await run_sql(queue, "PRAGMA query_only = 1")
        with pytest.raises(StorageError, match="it cannot be written") as caught:
            await queue.submit(["two"], MODEL)
        assert caught.value.reason == "read-only"
        assert (await queue.status(job)).queued == 1


# Damage.


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A queue with a job that is done, one that is half done, and one that is queued."""
    path = tmp_path_factory.mktemp("healthy") / "queue.db"
    connection = schema.open_database(str(path), 1.0)
    for name in ("done", "half", "queued"):
        job = job_queries.NewJob(name, MODEL, "{}", "{}", TEXTS)
        job_queries.submit(connection, job, Rules(), 1.0)
    for count in (200, 100):
        batch = worker_queries.take(connection, 1, count, 2.0)
        done = [(each, memoryview(array("f", fake(each)))) for each in batch.documents]
        worker_queries.settle(connection, Outcome(done=done), 3.0)
    connection.close()
    return path


def fake(document: Document) -> Any:
    assert document.text is not None
    return fake_vector(EMBED.digest, document.text, EMBED.dim)


@pytest.mark.parametrize("seed", range(40))
async def test_flipped_bytes_are_never_taken_for_data(
    tmp_path: Path, healthy: Path, seed: int
) -> None:
    path, random = tmp_path / "queue.db", Random(seed)
    shutil.copy(healthy, path)
    data = bytearray(path.read_bytes())
    for _ in range(random.choice((1, 10, 200))):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(StorageError, ConfigError, UnknownJob):
        async with AutoBatch(None, path) as queue:
            for job in ("done", "half", "queued"):
                found, errors = await vectors_of(queue, job)
                for at, row in found.items():
                    assert row == vector(TEXTS[at])
                assert set(errors.values()) <= {DAMAGED_VECTOR}
                if job == "done":
                    assert found.keys() | errors.keys() == set(range(len(TEXTS)))
            batch = await queue._open_database().change(worker_queries.take, 1, 1000, 1e9)
            assert {each.text for each in batch.documents} <= set(TEXTS)


async def test_a_damaged_text_fails_and_a_damaged_vector_is_told(
    tmp_path: Path, healthy: Path
) -> None:
    path = tmp_path / "queue.db"
    shutil.copy(healthy, path)
    for table, column, position in (("documents", "text", 150), ("vectors", "vector", 3)):
        key = (2 << job_queries.POSITION_BITS) + position
        execute_committed(path, f"UPDATE {table} SET {column} = x'00112233' WHERE key = {key}")
    async with fake_pool() as (pool, _), AutoBatch(pool, path) as queue:
        status = await queue.wait("half")
        assert (status.completed, status.failed) == (199, 1)
        found, errors = await vectors_of(queue, "half")
        assert found == {at: vector(text) for at, text in enumerate(TEXTS) if at not in (3, 150)}
        assert errors[3] == DAMAGED_VECTOR
        assert errors[150].startswith("StorageError: the text is damaged on the disk")


def execute_committed(path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql).rowcount == 1


def without_documents(healthy: Path) -> bytes:
    """The file, with the beginning of a table overwritten."""
    data = bytearray(healthy.read_bytes())
    with contextlib.closing(sqlite3.connect(healthy)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'documents'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    start = (page - 1) * size
    data[start : start + 100] = b"\xff" * 100
    return bytes(data)


async def test_damage_is_told_at_the_start(tmp_path: Path, healthy: Path) -> None:
    path, data = tmp_path / "queue.db", without_documents(healthy)
    path.write_bytes(data)
    with pytest.raises(StorageError, match="left unchanged; restore it from a backup") as caught:
        await AutoBatch(None, path).start()
    assert caught.value.reason == "damaged"
    assert path.read_bytes() == data


# The lock.


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


# The tables, whatever is done to them.


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
