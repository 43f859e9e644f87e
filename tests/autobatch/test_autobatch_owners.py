"""Owners of jobs, and the upgrade of files from before jobs had owners."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import project_paths
import pytest

from aiosollol import InvalidInput, OllamaPool, QueueFull, StorageError, UnknownJob
from aiosollol.autobatch import AutoBatch, schema
from aiosollol.testing import FakeModel, FakeTransport

pytestmark = pytest.mark.anyio

MODEL = "nomic-embed-text"
OLD = (project_paths.DATA / "queue_v1.sql").read_text("utf-8")
OLD_JOBS = ["queued", "cancelled", "failed", "done"]
OWNERS = (None, "ann", "bob")


async def pages(queue: AutoBatch, job: str, owner: str | None) -> list[Any]:
    return [page async for page in queue.results(job, owner=owner)]


CALLS = {
    "status": lambda queue, job, owner: queue.status(job, owner=owner),
    "wait": lambda queue, job, owner: queue.wait(job, owner=owner),
    "results": pages,
    "retry": lambda queue, job, owner: queue.retry(job, owner=owner),
    "cancel": lambda queue, job, owner: queue.cancel(job, owner=owner),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("asks", [*OWNERS, "Ann", "an", "ann ", "", "%", "none"])
async def test_an_owner_sees_its_own_jobs_alone(
    tmp_path: Path, call: str, asks: str | None
) -> None:
    async with pool() as embedding, AutoBatch(embedding, tmp_path / "queue.db") as queue:
        jobs = {owner: await queue.submit(["text"], MODEL, owner=owner) for owner in OWNERS}
        for made, job in jobs.items():
            await queue.wait(job)
            if asks is None or asks == made:
                await CALLS[call](queue, job, asks)
                continue
            with pytest.raises(UnknownJob) as foreign:
                await CALLS[call](queue, job, asks)
            with pytest.raises(UnknownJob) as unknown:
                await CALLS[call](queue, "no-such", asks)
            assert str(foreign.value) == str(unknown.value).replace("no-such", job)


@asynccontextmanager
async def pool() -> AsyncIterator[OllamaPool]:
    node = FakeTransport("fake", models=[FakeModel(MODEL, dim=16)])
    async with OllamaPool(["127.0.0.1:1"], transport_factory=lambda _: node) as found:
        yield found


async def test_a_call_with_another_owner_changes_nothing(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        job = await queue.submit(["one", "two"], MODEL, owner="ann")
        before = await queue.status(job)
        for call in ("cancel", "retry"):
            with pytest.raises(UnknownJob):
                await CALLS[call](queue, job, "bob")
        after = await queue.status(job)
        assert (after.queued, after.is_cancelled, after.owner) == (2, False, "ann")
        assert after.as_dict() == before.as_dict()


async def test_the_list_and_counts_of_an_owner(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        mine = [await queue.submit(["x"] * 3, MODEL, owner="ann") for _ in range(2)]
        for at in range(150):  # more than are listed, and later
            await queue.submit(["text"], MODEL, owner="bob" if at % 2 else None)
        await queue.cancel(mine[0])
        ann, whole = await queue.status(owner="ann"), await queue.status()
        assert [job.job_id for job in ann.jobs] == mine[::-1]
        assert (ann.job_count, ann.job_total, ann.active, ann.pending) == (2, 2, 0, 1)
        assert (ann.queued, ann.queued_bytes) == (3, 3)
        assert (whole.job_count, whole.job_total, whole.pending) == (152, 152, 151)
        assert (whole.queued, len(whole.jobs)) == (153, 100)
        nothing = await queue.status(owner="cal")
        assert (nothing.jobs, nothing.job_count, nothing.job_total, nothing.queued) == ([], 0, 0, 0)
        assert [job.job_id for job in (await queue.status(owner="ann", latest=1)).jobs] == mine[1:]


async def test_the_eta_of_an_owner_counts_documents_ahead_of_its_own(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        for owner, count in (("bob", 10), ("ann", 5), ("bob", 100)):
            await queue.submit(["text"] * count, MODEL, owner=owner)
        await queue._open_database().change(lambda c: c.execute("UPDATE worker SET rate = 5.0"))
        assert (await queue.status(owner="ann")).eta == 3.0
        assert (await queue.status(owner="bob")).eta == 23.0
        assert (await queue.status(owner="cal")).eta == 0.0
        assert (await queue.status()).eta == 23.0


async def test_a_full_queue_does_not_reveal_counts_to_an_owner(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db", max_documents=10) as queue:
        await queue.submit(["text"] * 8, MODEL, owner="bob")
        for owner, is_counted in (("ann", False), (None, True)):
            with pytest.raises(QueueFull, match=r"; try again in \d+ s") as caught:
                await queue.submit(["text"] * 3, MODEL, owner=owner)
            assert ("8 documents of 32 bytes are queued" in str(caught.value)) is is_counted


async def test_an_owner_sees_problems_of_its_own_jobs_only(tmp_path: Path) -> None:
    async with pool() as embedding, AutoBatch(embedding, tmp_path / "queue.db") as queue:
        await queue.submit(["text"], "secret-model", owner="bob")
        while not (await queue.status()).problem:
            await asyncio.sleep(0)
        assert "secret-model" in (await queue.status()).problem
        assert "secret-model" in (await queue.status(owner="bob")).problem
        assert (await queue.status(owner="ann")).problem == ""
        assert queue._worker is not None
        queue._worker._trouble = f"{tmp_path}/queue.db: the disk is full"
        problem = (await queue.status(owner="ann")).problem
        assert "see the log" in problem
        assert str(tmp_path) not in problem


@pytest.mark.parametrize("owner", ["", 7, b"ann", ["ann"]])
async def test_owners_that_cannot_be(tmp_path: Path, owner: Any) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        with pytest.raises(InvalidInput, match="owner must be"):
            await queue.submit(["text"], MODEL, owner=owner)
        assert (await queue.status()).job_count == 0


async def test_json_names_the_owner_where_there_is_one(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        for owner in ("ann", None):
            job = await queue.submit(["text"], MODEL, owner=owner)
            assert (await queue.status(job)).as_dict().get("owner", "none") == (owner or "none")


async def test_processes_that_share_a_file_agree(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with AutoBatch(None, path) as one, AutoBatch(None, path) as two:
        job = await one.submit(["text"], MODEL, owner="ann")
        assert (await two.status(job, owner="ann")).queued == 1
        with pytest.raises(UnknownJob):
            await two.status(job, owner="bob")
        assert (await two.status(owner="bob")).jobs == []


async def test_the_jobs_of_an_owner_are_found_by_an_index(tmp_path: Path) -> None:
    async with AutoBatch(None, tmp_path / "queue.db") as queue:
        plan = await queue._open_database().read(
            lambda c: c.execute(
                "EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE owner = ?"
                " ORDER BY number DESC LIMIT 100",
                ("ann",),
            ).fetchall()
        )
        assert [row[3] for row in plan] == [
            "SEARCH jobs USING INDEX owned_jobs (owner=?)",
        ]


# Files from before there were owners.


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A queue as version 1 of the tables left it."""
    path = tmp_path / "queue.db"
    run(path, OLD)
    return path


def run(path: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def content(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        return int(found)


async def test_jobs_of_an_old_file_are_kept_without_an_owner(old: Path) -> None:
    async with AutoBatch(None, old) as queue:
        assert [job.job_id for job in (await queue.status()).jobs] == OLD_JOBS
        assert {job.owner for job in (await queue.status()).jobs} == {None}
        assert (await queue.status(owner="ann")).jobs == []
        for job in OLD_JOBS:
            with pytest.raises(UnknownJob):
                await queue.status(job, owner="ann")
        (page,) = await pages(queue, "done", None)
        assert [row.tolist() for row in page.vectors] == [[0.0, 0.5], [1.0, 0.5]]
        (page,) = await pages(queue, "failed", None)
        assert (page.indices, page.errors) == ((0,), {1: "BadRequest: refused"})
        assert (await queue.status("done")).metadata == {"source": "wiki"}
        assert (await queue.status("queued")).queued == 2
        assert await queue.retry("failed") == 1
        new = await queue.submit(["text"], MODEL, owner="ann")
        assert [job.job_id for job in (await queue.status(owner="ann")).jobs] == [new]
    assert version(old) == schema.VERSION


async def test_documents_queued_in_an_old_file_are_embedded(old: Path) -> None:
    async with pool() as embedding, AutoBatch(embedding, old) as queue:
        assert (await queue.wait("queued")).completed == 2


async def test_an_upgraded_file_has_the_tables_of_a_new_one(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    for path in (old, new):
        async with AutoBatch(None, path):
            pass
    assert shape(old) == shape(new)
    before = content(old)
    async with AutoBatch(None, old):  # and once is enough
        pass
    assert content(old) == before


def shape(path: Path) -> dict[str, Any]:
    """The columns of each table and the definition of each index."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        entries = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        found: dict[str, Any] = {name: sql for kind, name, sql in entries if kind == "index"}
        for name in (name for kind, name, _ in entries if kind == "table"):
            found[name] = connection.execute(f"PRAGMA table_info({name})").fetchall()
        return found


async def test_several_processes_may_upgrade_a_file_at_once(old: Path) -> None:
    async with AsyncExitStack() as stack:
        queues = [AutoBatch(None, old) for _ in range(8)]
        await asyncio.gather(*map(stack.enter_async_context, queues))
        for queue in queues:
            assert (await queue.status()).job_count == len(OLD_JOBS)
    assert version(old) == schema.VERSION


async def test_a_process_that_still_runs_the_old_version(old: Path) -> None:
    """Its new jobs have no owner, so only callers without one see them."""
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as earlier:
        earlier.execute("SELECT count(*) FROM jobs").fetchone()
        async with AutoBatch(None, old) as queue:
            earlier.execute(
                "INSERT INTO jobs (id, group_id, metadata, total, queued, queued_bytes, created_at)"
                " VALUES ('late', 1, '{}', 0, 0, 0, 107.0)"
            )
            assert (await queue.status("late")).owner is None
            with pytest.raises(UnknownJob):
                await queue.status("late", owner="ann")


def locked(path: Path) -> Iterable[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return [connection]


def damaged(path: Path) -> Iterable[sqlite3.Connection]:
    """A column that contradicts its table: found before anything is changed."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'started_at REAL',"
            " 'started_at REAL NOT NULL') WHERE name = 'jobs'"
        )
    return []


def half_done(path: Path) -> Iterable[sqlite3.Connection]:
    """The second step fails, because its index is there already."""
    run(path, "CREATE INDEX owned_jobs ON jobs (id)")
    return []


@pytest.mark.parametrize(
    ("hinder", "reason"), [(locked, "locked"), (damaged, "damaged"), (half_done, "io")]
)
async def test_an_upgrade_that_fails_leaves_the_file_as_it_is(
    old: Path, hinder: Any, reason: str
) -> None:
    held = hinder(old)
    before = content(old)
    with pytest.raises(StorageError) as caught:
        await AutoBatch(None, old, lock_seconds=0.01).start()
    assert caught.value.reason == reason
    for connection in held:
        connection.close()
    assert (version(old), content(old)) == (1, before)
