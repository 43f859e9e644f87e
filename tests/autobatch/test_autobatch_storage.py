"""A queue's file that cannot be opened or written: a clear error, and no submitted job is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from autobatch_files import MODEL, TEXTS, fake_pool, vectors_of

from aiosollol import (
    ConfigError,
    SollolError,
    StorageError,
)
from aiosollol.autobatch import (
    AutoBatch,
    worker_queries,
)
from aiosollol.testing import FakeModel, fake_vector

pytestmark = pytest.mark.anyio


async def run_sql(queue: AutoBatch, sql: str) -> Any:
    """What a statement gives on the connection of the queue itself, outside a transaction."""
    database = queue._open_database()
    assert database._connection is not None
    return await database.call(lambda: database._connection.execute(sql).fetchone())


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
